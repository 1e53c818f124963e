"""The page of a run under load: every cell, against how many are in flight and how fast they come; who was in which
slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import jinja2
from markupsafe import Markup

import specdec
from specdec.experiments.load.settings import BATCHING, CLOSED, OPEN, SPECULATION
from specdec.experiments.load.shown import sentences
from specdec.experiments.report import text
from specdec.experiments.report.figures import Figure
from specdec.experiments.report.panels import Line, Panel, panels
from specdec.experiments.report.run_files import RunFiles
from specdec.experiments.report.slots import slot_figures
from specdec.experiments.report.svg import Canvas

Json = Mapping[str, Any]
CLASSES = dict(zip(SPECULATION, ("base", "m0", "m1"), strict=True))
WORDS = {CLOSED: "requests in flight", OPEN: "arrivals, as a share of the capacity"}
PERCENTILES = ("p50", "p90", "p99")
RATIOS = ("over_off", "over_better", "over_static")


def load_page(run: RunFiles, environment: jinja2.Environment, css: Markup, facts: Sequence[tuple[str, str]]) -> str:
    """See `page.render`."""
    load = run.summary["load"]
    groups = [
        (_heading(loop, level, cells := list(found)), cells)
        for (loop, level), found in groupby(load["cells"], key=lambda cell: (cell["loop"], cell["level"]))
    ]
    return environment.get_template("load.html.j2").render(
        run=run,
        summary=run.summary,
        load=load,
        version=specdec.__version__,
        css=css,
        facts=facts,
        sentences=sentences(run.summary),
        groups=groups,
        swatch=swatch,
        title=title,
        times=_times,
        preempted=any(cell["metrics"]["preemptions"] for cell in load["cells"]),
        figures=[*figures(load["cells"]), *slot_figures(load["cells"], run.requests)],
    )


def _heading(loop: str, level: float, cells: Sequence[Json]) -> str:
    if loop == CLOSED:
        return f"Closed loop, {level:g} at once"
    return f"Open loop, {level:g} × capacity: {cells[0]['rate']:.3g} requests a second, {cells[0]['slots']} slots"


def title(cell: Json) -> str:
    """Speculation and batching in words."""
    return f"{cell['speculation']}, {'in flight' if cell['batching'] == BATCHING[0] else 'static'}"


def swatch(cell: Json) -> Markup:
    """A cell's marker, for tables."""
    canvas = Canvas(14, 14)
    kind = "dot" if cell["batching"] == BATCHING[0] else "hollow"
    canvas.marker(7, 7, SPECULATION.index(cell["speculation"]), f"{CLASSES[cell['speculation']]} {kind}", 4.5)
    return Markup('<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{}</svg>').format(canvas.content)


def _times(found: Json) -> str:
    return " / ".join(text.milliseconds(found[part]) for part in PERCENTILES)


def figures(cells: Sequence[Json]) -> list[Figure]:
    """Those that have something to show, of the closed loop, then of the open one."""
    closed = [cell for cell in cells if cell["loop"] == CLOSED]
    opened = [cell for cell in cells if cell["loop"] == OPEN]
    bars = "Bars are 95 % bootstrap intervals over rounds. " if any(_interval(cell) for cell in closed) else ""
    found = [
        _figure("throughput", "Tokens per second over plain decoding", closed, ["over_off"], "Over speculation off, "
                f"in the same batching. {bars}Full lines: in flight; dashed: static batches."),
        _figure("better", "Adaptive over the better of off and on", closed, ["over_better"], f"Tokens/s. {bars}"),
        _figure("static", "In flight over static batches", closed, ["over_static"], f"Tokens/s. {bars}"),
        _figure("tokens", "Tokens per second", closed, ["throughput"], "All requests together."),
        _figure("goodput", "Goodput", closed, ["goodput"], "Requests a second within both bounds."),
        _figure("ttft", "Time to first token, closed loop", closed, ["ttft"], "Milliseconds, logarithmic."),
        _figure("tpot", "Time per output token, closed loop", closed, ["tpot"], "Milliseconds, logarithmic."),
        _figure("length", "Mean accepted length", closed, ["mean_accepted_length"], "Tokens a step, all requests."),
        _figure("use", "Use of slots and pages", closed, ["slot_use", "pool_use"], "Shares over time; pages of "
                "in-flight batching only, whose pool is as large as all slots could need."),
        _figure("open-goodput", "Goodput, open loop", opened, ["goodput"], "Requests a second within both bounds."),
        _figure("open-ttft", "Time to first token, open loop", opened, ["ttft"], "Milliseconds, logarithmic."),
        _figure("open-tpot", "Time per output token, open loop", opened, ["tpot"], "Milliseconds, logarithmic."),
    ]  # fmt: skip
    return [figure for figure in found if figure is not None]


def _interval(cell: Json) -> bool:
    return bool(cell["over_off"]) and cell["over_off"]["low"] is not None


def _figure(ident: str, name: str, cells: Sequence[Json], metrics: Sequence[str], caption: str) -> Figure | None:
    if not cells:
        return None
    wanted = [(metric, part) for metric in metrics for part in _parts(metric)]
    log = any(metric in ("ttft", "tpot") for metric, _ in wanted)
    factor = 1000.0 if log else 100.0 if metrics[0] == "slot_use" else 1.0
    drawn = [Panel(_panel_name(metric, part), _lines(cells, metric, part)) for metric, part in wanted]
    if not any(line.points for panel in drawn for line in panel.lines):
        return None
    unit = "×" if metrics[0] in RATIOS else " %" if metrics[0] == "slot_use" else ""
    drawing = panels(
        f"plot-load-{ident}", name, drawn, WORDS[cells[0]["loop"]], factor, unit, log, 1.0 if unit == "×" else None
    )
    columns = ["cell", *(" ".join(filter(None, (metric, part))) for metric, part in wanted)]
    rows = [
        [f"{cell['level']:g}: {title(cell)}", *(_said(_value(cell, m, p)[1], factor) for m, p in wanted)]
        for cell in cells
    ]
    return Figure(f"load-{ident}", name, caption, drawing, columns, rows)


def _parts(metric: str) -> Sequence[str]:
    return {"ttft": PERCENTILES, "tpot": PERCENTILES, "pool_use": ("mean",)}.get(metric, ("",))


def _panel_name(metric: str, part: str) -> str:
    return {"slot_use": "slots", "pool_use": "pages, mean"}.get(metric, part)


def _said(value: float | None, factor: float) -> str:
    return text.number(None if value is None else factor * value, 2)


def _lines(cells: Sequence[Json], metric: str, part: str) -> list[Line]:
    lines = []
    for speculation in SPECULATION:
        for batching in BATCHING:
            own = [c for c in cells if c["speculation"] == speculation and c["batching"] == batching]
            points = [(cell["level"], *_value(cell, metric, part)) for cell in own]
            known = [(x, low, middle, high) for x, low, middle, high in points if middle is not None]
            if own and (known or metric == "pool_use"):
                name = title(own[0])
                lines.append(
                    Line(name, CLASSES[speculation], SPECULATION.index(speculation), known, batching != BATCHING[0])
                )
    return lines


def _value(cell: Json, metric: str, part: str) -> tuple[float | None, float | None, float | None]:
    """Low, middle and high, the outer two where there is an interval."""
    if metric in RATIOS:
        over = cell[metric] or {}
        return over.get("low"), over.get("ratio"), over.get("high")
    found = cell["metrics"][metric]
    return None, found[part] if part else found, None
