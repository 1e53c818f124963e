"""The figures of the page: what each is called, what it shows, and its numbers for those who want a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from specdec.experiments.grid import AXES
from specdec.experiments.report import curves, plots, roofline_plot, rows, text
from specdec.experiments.report.shown import Shown, length_of
from specdec.metrics import DECODING_PHASES


@dataclass(frozen=True, slots=True)
class Figure:
    """`rows` are texts, the first of each a method's name; `folded`: shown only when it is asked for."""

    ident: str
    title: str
    caption: str
    drawing: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


def figures(methods: Sequence[Shown], machine: Mapping[str, Any] | None, dtype: str | None) -> list[Figure]:
    """Those that have something to show. Of a grid those along its axes, and of all its cells phases and roofline.

    Args:
        machine: of the summary's environment; None where steps were held against none.
        dtype: of the target.
    """
    methods = [method for method in methods if not method.is_again]
    if any(method.cell for method in methods):
        chosen = [*_grid(methods), ("phases", *_phases(methods)), ("roofline", *_roofline(methods, machine, dtype))]
    else:
        chosen = [
            ("speedup", *_speedup(methods)),
            ("phases", *_phases(methods)),
            ("conditional", *_depths(methods, "conditional")),
            ("unconditional", *_depths(methods, "unconditional")),
            ("by-category", *_categories(methods)),
            ("tpot", *_tpot(methods)),
            ("ttft", *_ttft(methods)),
            ("roofline", *_roofline(methods, machine, dtype)),
        ]
    return [
        Figure(ident, title, caption, drawing, columns, cells)
        for ident, title, caption, drawing, columns, cells in chosen
        if drawing is not None
    ]


QUANTILES = ("p20", "p50", "p80", "p99")
DOTS = "A dot is a request, the box spans the 20th to the 80th percentile, the line is the median, the tick the 99th."
Parts = tuple[str, str, Markup | None, list[str], list[list[str]]]


def _speedup(methods: Sequence[Shown]) -> Parts:
    caption = (
        "Bars are 95 % bootstrap intervals over prompts. Along a thin line every step costs the same, in steps of "
        "plain decoding. Hollow markers: the words beside them apply."
    )
    columns = ["method", "mean accepted length", "speed-up", "95 % interval"]
    cells = [
        [m.name, text.number(m.length), f"{text.times(m.ratio)} {m.label}".strip(), text.interval(m.entry["speedup"])]
        for m in methods
        if m.entry["speedup"]
    ]
    return "Speed-up against mean accepted length", caption, plots.speedup(methods), columns, cells


def _phases(methods: Sequence[Shown]) -> Parts:
    caption = "Shares of the time after the prefill. Draft: propose and observe; host: the rest of the loop."
    cells = [[m.name, *(text.percent(m.shares.get(p), 1) for p in DECODING_PHASES)] for m in methods if m.shares]
    return "Where decoding time goes", caption, rows.phases(methods), ["method", *DECODING_PHASES], cells


def _depths(methods: Sequence[Shown], kind: str) -> Parts:
    caption = {
        "conditional": "Of the steps in which the walk stood one level above at a node with children, how many "
        "accepted a child. Deep levels are reached by few steps.",
        "unconditional": "Of all steps, how many accepted a node of this depth.",
    }[kind]
    deepest = max([len(m.depths(kind)) for m in methods], default=0)
    cells = [
        [m.name, *(text.percent(r) for r in m.depths(kind)), *[text.DASH] * (deepest - len(m.depths(kind)))]
        for m in methods
        if m.depths(kind)
    ]
    columns = ["method", *map(str, range(1, deepest + 1))]
    return f"Acceptance by depth, {kind}", caption, plots.depths(methods, kind), columns, cells


def _categories(methods: Sequence[Shown]) -> Parts:
    names = sorted({c for m in methods for c in m.entry["by_category"]})
    empty: dict[str, dict[str, float]] = {"metrics": {}}
    cells = [[m.name, *(text.number(length_of(m.entry["by_category"].get(c, empty))) for c in names)] for m in methods]
    caption = "Where a drafter finds its tokens: pooled over the requests of a category."
    return "Mean accepted length by category", caption, rows.categories(methods), ["method", *names], cells


def _tpot(methods: Sequence[Shown]) -> Parts:
    caption = f"{DOTS} In the table also the time of a step, pooled over all steps: what lies between tokens."
    columns = [*(f"TPOT {q} ms" for q in QUANTILES), *(f"step {q} ms" for q in QUANTILES)]
    cells = [
        [m.name, *(text.milliseconds(time(q)) for time in (m.tpot, m.step_time) for q in QUANTILES)] for m in methods
    ]
    return "Time per output token", caption, rows.tpots(methods), ["method", *columns], cells


def _ttft(methods: Sequence[Shown]) -> Parts:
    cells = [[m.name, *(text.milliseconds(m.ttft(q)) for q in QUANTILES)] for m in methods]
    return "Time to first token", DOTS, rows.ttfts(methods), ["method", *(f"{q} ms" for q in QUANTILES)], cells


def _grid(methods: Sequence[Shown]) -> Iterator[tuple[str, str, str, Markup | None, list[str], list[list[str]]]]:
    for axis in AXES:
        along = [(c, value, m) for c in curves.curves(methods, axis) for value, m in c.points]
        columns = ["method", axis, "TTFT p50 ms", *(f"TPOT {q} ms" for q in ("p20", "p50", "p80", "p99")), "tokens/s"]
        cells = [
            [
                c.name,
                str(value),
                text.milliseconds(m.ttft("p50")),
                *(text.milliseconds(m.tpot(q)) for q in ("p20", "p50", "p80", "p99")),
                text.number(m.entry["metrics"].get("tokens_per_second"), 1),
            ]
            for c, value, m in along
        ]
        caption = "Medians, bars from the 20th to the 80th percentile. Dashed: plain decoding, where it has no curve."
        title = f"Time per output token against {axis}"
        yield f"tpot-{axis}", title, caption, curves.times(methods, axis), columns, cells
        cells = [
            [c.name, str(value), f"{text.times(m.ratio)} {m.label}".strip(), text.interval(m.entry["speedup"])]
            for c, value, m in along
            if m.entry["speedup"]
        ]
        caption = "Over plain decoding in the same cell; bars are 95 % bootstrap intervals over groups of prompts."
        columns = ["method", axis, "speed-up", "95 % interval"]
        yield f"speedup-{axis}", f"Speed-up against {axis}", caption, curves.speedups(methods, axis), columns, cells


def _roofline(methods: Sequence[Shown], machine: Mapping[str, Any] | None, dtype: str | None) -> Parts:
    caption = (
        "Filled: the target's step, hollow: the drafter's. Under the slope memory bounds a step, under the level line "
        "arithmetic; how far below them it lies is what it does not reach."
    )
    cells = [
        [m.name, part.replace("_", " "), f"{x:.3g}", text.large(y)] for m, part, x, y in roofline_plot.points(methods)
    ]
    drawing = roofline_plot.roofline(methods, machine, dtype)
    return "Roofline", caption, drawing, ["method", "step", "FLOP per byte", "FLOP/s"], cells
