"""Plots and time lines of made-up cells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from specdec.experiments.figures import draw_load
from specdec.experiments.report.load import figures
from specdec.experiments.report.panels import Line, Panel, panels, round_ticks
from specdec.experiments.report.slots import draw, slot_figures

from .test_metrics import ROWS


def cell(
    loop: str = "closed", level: float = 2, speculation: str = "on", batching: str = "in_flight"
) -> dict[str, Any]:
    part = {"p50": 0.1, "p90": 0.2, "p99": 0.3}
    metrics = {"ttft": part, "tpot": part, "queue": part, "throughput": 10.0, "goodput": 1.0, "request_rate": 2.0}
    metrics |= {"mean_accepted_length": 2.0, "slot_use": 0.75, "preemptions": 1}
    metrics |= {
        "pool_use": {"mean": None if batching == "static" else 0.4, "max": None if batching == "static" else 0.9}
    }
    about = {
        "name": f"{loop}_{level:g}_{speculation}_{batching}",
        "loop": loop,
        "level": level,
        "slots": 2,
        "rate": 3.0,
    }
    over = {"ratio": 1.5, "low": 1.2, "high": 1.8, "rounds": 3, "other": "off"}
    ratios = {"over_off": None if speculation == "off" else over, "over_static": None, "over_better": None}
    return about | {"speculation": speculation, "batching": batching, "metrics": metrics} | ratios


def rows_of(name: str) -> list[dict[str, Any]]:
    common = {"method": name, "repeat": 0, "due": 0.5}
    return [row | common | {"request": i, "end": row["visits"][-1][3]} for i, row in enumerate(ROWS)]


def test_a_time_line_has_a_bar_a_visit_and_a_mark_a_preemption() -> None:
    one = cell()
    drawing = str(draw(one, rows_of(one["name"]), 4.0, "<time>"))
    bars = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="[\d.]+" class="(read|decode)"', drawing
    )
    assert [kind for *_, kind in bars] == [kind for row in ROWS for _, kind, _, _ in row["visits"]]
    assert len({y for _, y, _, _ in bars}) == 2  # rows of slots
    second = 426 / 4  # from 44 to 470
    starts = [start for row in ROWS for _, _, start, _ in row["visits"]]
    assert [float(x) for x, *_ in bars] == pytest.approx([44 + second * start for start in starts], abs=0.06)
    marks = re.findall(r'<line x1="([\d.]+)" [^>]*class="sent"', drawing)
    assert [float(x) for x in marks] == pytest.approx([44 + 2 * second], abs=0.06)
    assert "&lt;time&gt;" in drawing
    assert "75 %" in drawing
    many = str(draw(one | {"slots": 64}, rows_of(one["name"]), 4.0, "many"))
    height = re.search(r'viewBox="0 0 480 (\d+)"', many)
    assert height is not None
    assert int(height[1]) < 64 * 6 + 80
    alike = str(draw(cell("open"), rows_of(one["name"]), 4.0, "open"))
    assert alike.count('class="axis"') > drawing.count('class="axis"')  # ticks of arrivals


def test_time_lines_are_of_few_slots_where_there_are_some() -> None:
    cells = [cell(level=level, batching=b) for level in (2, 4, 32) for b in ("in_flight", "static")]
    cells += [cell("open", rate) for rate in (0.5, 1.1)]
    requests = [row for each in cells for row in rows_of(each["name"])]
    assert [figure.title for figure in slot_figures(cells, requests)] == [
        "Time line of slots: in flight, 4 at once, speculation on",
        "Time line of slots: static batches, 4 at once, speculation on",
        "Time line of slots: in flight, arrivals at 1.1 × capacity, speculation on",
    ]
    found = slot_figures([cell(level=32)], rows_of(cell(level=32)["name"]))
    assert [figure.title for figure in found] == ["Time line of slots: in flight, 32 at once, speculation on"]
    assert "red line" in found[0].caption
    assert [row[:2] for row in found[0].rows] == [["0", "1"], ["1", "2"], ["2", "1"]]
    assert slot_figures([cell()], []) == []
    assert slot_figures([], []) == []


def test_figures_are_of_what_was_measured() -> None:
    closed = [
        cell(level=n, speculation=s, batching=b) for n in (1, 8) for s in ("off", "on") for b in ("in_flight", "static")
    ]
    names = [figure.ident for figure in figures(closed)]
    assert names == [f"load-{n}" for n in ("throughput", "tokens", "goodput", "ttft", "tpot", "length", "use")]
    ttft = next(figure for figure in figures(closed) if figure.ident == "load-ttft")
    assert ttft.rows[0] == ["1: off, in flight", "100.00", "200.00", "300.00"]
    opened = figures([cell("open", 0.8)])
    assert [figure.ident for figure in opened] == ["load-open-goodput", "load-open-ttft", "load-open-tpot"]
    assert figures([]) == []


def test_figures_for_trackers(tmp_path: Path) -> None:
    cells = [cell(level=n, speculation=s) for n in (1, 8) for s in ("off", "on")] + [cell("open", 0.8)]
    files = draw_load({"load": {"cells": cells}}, tmp_path / "figures")
    assert list(files) == ["load_closed", "load_open"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files.values())


def test_panels_share_their_axes() -> None:
    first = Line("a<b", "m0", 1, [(1, 0.5, 1.0, 2.0), (10, None, 4.0, None)], False)
    second = Line("c", "m1", 2, [(1, None, 0.0, None)], True)
    drawing = str(panels("ident", "title", [Panel("p", [first]), Panel("q", [second])], "x", unit="×", even=1.0))
    assert drawing.count('class="m0 bar"') == 1
    assert drawing.count('class="even"') == 2
    assert 'class="m1 hollow"' in drawing
    assert "m1 curve dashed" in drawing
    assert "a&lt;b at 1: 1×, 10: 4×" in drawing
    assert panels("ident", "title", [Panel("", [Line("a", "m0", 0, [(1, None, 0.1, None)], False)])], "x", log=True)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.3, 3, [0.5, 1, 2]), (9, 101, [10, 20, 50, 100]), (0.001, 1000, [10.0**p for p in range(-3, 4)])],
)
def test_round_ticks(low: float, high: float, wanted: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(wanted)
