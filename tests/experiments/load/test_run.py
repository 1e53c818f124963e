"""A run of the experiment on a tiny random model, stopped, gone on with, and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.experiments.load.serve import DECODE, READ
from specdec.experiments.load.settings import ALONE

from ..conftest import read_rows
from ..test_report import Page

Run = Callable[..., tuple[int, Path]]
SHORT = ["load.concurrency=[1,3]", "load.rates=[0.8]", "load.slots=2", "load.requests=3", "load.requests_per_slot=1"]
SHORT += ["load.open_requests=4", "load.output_tokens=[2,8]", "load.curve_seconds=0.02", "measure.repeats=2"]


@pytest.fixture
def load(specdec_run: Run) -> Run:
    return lambda *more: specdec_run("experiment=load", "drafter=ngram", *SHORT, *more)


def test_a_run_and_its_page(load: Run, capsys: Any) -> None:
    code, directory = load()
    shown = capsys.readouterr()
    assert code == 0, shown.err
    names = {path.name for path in directory.iterdir()}
    assert names >= {"config.yaml", "provenance.json", "cells.jsonl", "requests.jsonl", "summary.json", "report.html"}
    assert names >= {"curve.json", "metrics.jsonl"}
    rows, cells = read_rows(directory / "requests.jsonl"), read_rows(directory / "cells.jsonl")
    assert len(cells) == 2 + 3 * 6 * 2  # alone and the capacity; three levels of six methods, twice
    assert sum(cell["requests"] for cell in cells) == len(rows) == 4 + 4 + 2 * 6 * (3 + 3 + 4)
    alone = {row["request"]: row for row in rows if row["method"] == ALONE.name}
    for row in rows:
        assert row["new_tokens"] == len(row["token_ids"]) == alone[row["request"]]["new_tokens"]
        assert 2 <= row["new_tokens"] <= 8
        assert row["token_ids"] == alone[row["request"]]["token_ids"]
        assert 0 <= row["queue"] <= row["ttft"]
        assert row["due"] <= row["due"] + row["ttft"] <= row["end"] + 1e-9
        kinds = [kind for _, kind, _, _ in row["visits"]]
        assert kinds in ([READ, DECODE], [DECODE])
        assert all(start <= end for _, _, start, end in row["visits"])
    gaps: dict[int, list[float]] = {}
    for cell in cells:
        if cell["loop"] == "open":
            own = [r["due"] for r in rows if (r["method"], r["repeat"]) == (cell["cell"], cell["round"])]
            assert own == pytest.approx(gaps.setdefault(cell["round"], own))  # the same arrivals for every method
            assert (cell["rate"], cell["slots"]) == (pytest.approx(0.8 * capacity(cells)), 2)
        assert (cell["pool"] is None) == (cell["batching"] == "static")
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["complete"]
    assert [method["name"] for method in summary["methods"]] == ["none", "on", "adaptive"]
    assert [method["lossless"]["verdict"] for method in summary["methods"]] == ["yes"] * 3
    found = {cell["name"]: cell for cell in summary["load"]["cells"]}
    assert len(found) == 18
    on = found["closed_3_on_in_flight"]
    assert on["over_off"]["rounds"] == on["over_static"]["rounds"] == 2
    assert on["over_better"] is None
    assert found["closed_3_adaptive_static"]["over_better"]["other"] in ("off", "on")
    assert found["open_0.8_adaptive_in_flight"]["over_off"] is None
    assert summary["load"]["bounds"]["ttft"] > 0
    page = Page(directory / "report.html")
    for word in ("Closed loop, 3 at once", "Open loop, 0.8 × capacity", "Time line of slots: in flight", "Goodput"):
        assert word in page.text
    assert "Adaptive against the better of off and on" in shown.out
    assert load()[0] == 0
    assert "finished already" in capsys.readouterr().out


def capacity(cells: list[dict[str, Any]]) -> float:
    (own,) = (cell for cell in cells if cell["loop"] == "capacity")
    return float(own["requests"] / own["seconds"])


def test_a_killed_run_goes_on(load: Run, capsys: Any) -> None:
    """The cell in flight is served again, whole; what was served before is left as it is."""
    few = ["load.rates=[]", "load.concurrency=[2]", "load.speculation=[off,on]", "measure.repeats=1", "load.curve=0.02"]
    code, directory = load(*few)
    assert code == 0
    cells, rows = (read_rows(directory / f"{name}.jsonl") for name in ("cells", "requests"))
    assert len(cells) == 5
    (directory / "summary.json").unlink()
    lines = [json.dumps(cell) + "\n" for cell in cells]
    (directory / "cells.jsonl").write_text("".join(lines[:3]) + lines[3][:40])  # torn
    (directory / "requests.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows[:-4])
    )  # some of the fourth's
    assert load(*few)[0] == 0
    assert "Going on: 3 of 5 cells" in capsys.readouterr().out
    again, rows_again = (read_rows(directory / f"{name}.jsonl") for name in ("cells", "requests"))
    assert again[:3] == cells[:3]
    assert [cell["cell"] for cell in again] == [cell["cell"] for cell in cells]
    assert [(r["method"], r["request"], r["token_ids"]) for r in rows_again] == [
        (r["method"], r["request"], r["token_ids"]) for r in rows
    ]


def test_plain_decoding_alone_with_ends_and_little_memory(load: Run) -> None:
    """Without a drafter, sampled, in a pool for hardly one request, so that some are preempted."""
    small = ["load.speculation=[off]", "load.batching=[in_flight]", "sampling=temperature"]
    small += ["load.page=4", "load.sharing=false", "load.ignore_end=false", "measure.repeats=1", "load.rates=[]"]
    small += ["data.categories=[code]", "load.output_tokens=null", "measure.max_new_tokens=40", "load.memory=20480"]
    code, directory = load(*small)
    assert code == 0
    rows = read_rows(directory / "requests.jsonl")
    assert {row["new_tokens"] for row in rows} == {40}
    lost = sum(row["preemptions"] for row in rows)
    assert lost > 0
    again = [row for row in rows if [kind for _, kind, _, _ in row["visits"]].count(READ) > 1]
    assert 0 < len(again) <= lost
    summary = json.loads((directory / "summary.json").read_text())
    assert [cell["lossless"]["verdict"] for cell in summary["load"]["cells"]] == ["yes", "yes"]
    assert sum(cell["metrics"]["preemptions"] for cell in summary["load"]["cells"]) == lost
    assert "come again" in summary["notes"][0]
    assert "A red line ends" in Page(directory / "report.html").text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("drafter=none", "choose the drafter that is fixed and made adaptive"),
        ("drafter=adaptive", "choose the drafter that is fixed and made adaptive"),
        ("+methods.more.drafter=suffix", "take methods out"),
        ("measure.batch=2", "take measure.batch and noise out"),
        ("backend=transformers", "load runs on specdec itself"),
        ("load.slots=0", "load.slots is 0"),
    ],
)
def test_what_makes_no_sense_is_told(load: Run, capsys: Any, given: str, message: str) -> None:
    code, directory = load(given)
    assert code == 1
    assert message in capsys.readouterr().err
    assert not directory.exists()
