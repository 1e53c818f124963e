"""Figures of what was accepted: by depth, sibling rank, position in the text, category and temperature."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from specdec.experiments.report import text
from specdec.experiments.report.figures import Figure
from specdec.experiments.report.multiples import Panel, multiples
from specdec.experiments.report.shown import Shown
from specdec.experiments.report.svg import WIDTH, Axis, Canvas, legend

Json = Mapping[str, Any]
MOST_DEPTHS, MOST_RANKS = 12, 8  # that are drawn
MOST_OPEN = 6  # methods whose panels are shown without being asked for


def acceptance_figures(methods: Sequence[Shown]) -> list[Figure]:
    """Those that have something to show; none for a run of an earlier version."""
    drafting = [(m, found) for m in methods if (found := m.entry.get("accepted_by")) and found["depth"]]
    made = (_depths(drafting), _ranks(drafting), _cells(drafting), _positions(drafting), _categories(drafting))
    return [figure for figure in (*made, _temperatures(methods)) if figure]


def by_temperature(methods: Sequence[Json]) -> list[list[Json]]:
    """Entries that differ in nothing but the temperature, the coldest first; groups of two at least."""
    groups: dict[str, list[Json]] = {}
    for entry in methods:
        if (entry.get("accepted_by") or {}).get("depth"):
            rest = {k: v for k, v in entry["sampling"].items() if k != "temperature"}
            key = json.dumps([entry["drafter"], entry["tree"], entry["acceptance"], rest], sort_keys=True, default=str)
            groups.setdefault(key, []).append(entry)
    found = [sorted(group, key=lambda e: e["sampling"]["temperature"]) for group in groups.values()]
    return [group for group in found if len({e["sampling"]["temperature"] for e in group}) > 1]


def _figure(
    ident: str,
    title: str,
    caption: str,
    panels: Sequence[Panel],
    labels: Sequence[str],
    rows: list[list[str]],
    columns: Sequence[str] | None = None,
    tokens: bool = False,
) -> Figure | None:
    """A panel a method; None without one. Of many methods it is folded.

    Args:
        columns: of the table behind the method's; None for `labels`.
        tokens: what is drawn are tokens a step, no shares.
    """
    top, low = (_top(panels), 1.0) if tokens else (1.0, 0.0)
    drawing = multiples(ident, title, panels, labels, top, not tokens, low)
    if drawing is None:
        return None
    head = ["method", *(labels if columns is None else columns)]
    return Figure(ident, title, caption, drawing, head, rows, folded=len(panels) > MOST_OPEN)


def _depths(drafting: Sequence[tuple[Shown, Json]]) -> Figure | None:
    deepest = min(max([len(found["depth"]) for _, found in drafting], default=0), MOST_DEPTHS)
    panels = [
        Panel(
            m.name,
            m.class_,
            full=[cell["conditional"] for cell in found["depth"][:deepest]],
            hollow=[cell["unconditional"] for cell in found["depth"][:deepest]],
        )
        for m, found in drafting
    ]
    labels = [str(depth) for depth in range(1, deepest + 1)]
    title = "Acceptance by depth, with intervals"
    caption = (
        "Full: given that the walk came to a node with children; hollow: of all steps. Bars are 95 % intervals that "
        "count a prompt's steps as alike as they are."
    )
    cells = [[m.name, *(_cell(c) for c in found["depth"][:deepest])] for m, found in drafting]
    return _figure("accepted-depth", title, caption, panels, labels, cells)


def _ranks(drafting: Sequence[tuple[Shown, Json]]) -> Figure | None:
    wide = [(m, found) for m, found in drafting if len(found["rank"]) > 1]
    most = min(max([len(found["rank"]) for _, found in wide], default=0), MOST_RANKS)
    panels = [Panel(m.name, m.class_, [c["conditional"] for c in found["rank"][:most]]) for m, found in wide]
    labels = [str(rank) for rank in range(1, most + 1)]
    title = "Acceptance by sibling rank"
    caption = (
        "Of the children of that rank, the best being 1, that accepted nodes had, how many were accepted: over all "
        "depths. acceptance/METHOD.json holds them by depth, for tree=sequoia."
    )
    cells = [[m.name, *(_cell(c) for c in found["rank"][:most])] for m, found in wide]
    return _figure("accepted-rank", title, caption, panels, labels, cells)


def _cells(drafting: Sequence[tuple[Shown, Json]]) -> Figure | None:
    wide = [(m, found["depth_rank"]) for m, found in drafting if len(found["rank"]) > 1]
    most = min(max([len(row) for _, rows in wide for row in rows], default=0), MOST_RANKS)
    panels = [
        Panel(m.name, m.class_, cells=[[c["conditional"][0] for c in row[:most]] for row in rows[:5]])
        for m, rows in wide
    ]
    labels = [str(rank) for rank in range(1, most + 1)]
    title = "Acceptance by depth and rank"
    caption = "Percent, given that the walk came to the node above. Rows are depths, columns ranks."
    cells = [
        [f"{m.name}, depth {depth}", *(_cell(c) for c in row[:most]), *[text.DASH] * (most - len(row))]
        for m, rows in wide
        for depth, row in enumerate(rows, 1)
    ]
    return _figure("accepted-cells", title, caption, panels, labels, cells)


def _positions(drafting: Sequence[tuple[Shown, Json]]) -> Figure | None:
    ends = sorted({(part["first"], part["last"]) for _, found in drafting for part in found["position"]})
    if len(ends) < 2:
        return None
    panels, cells = [], []
    for method, found in drafting:
        by_end = {(part["first"], part["last"]): part["length"] for part in found["position"]}
        lengths = [by_end.get(end, (None,) * 3) for end in ends]
        panels.append(Panel(method.name, method.class_, lengths))
        cells.append([method.name, *(_interval(length) for length in lengths)])
    title = "Tokens a step by position in the answer"
    caption = "By the number of the step's first new token, with 95 % intervals; a label is where its stretch begins."
    labels, columns = [str(first) for first, _ in ends], [f"{first} to {last}" for first, last in ends]
    return _figure("accepted-position", title, caption, panels, labels, cells, columns, tokens=True)


def _categories(drafting: Sequence[tuple[Shown, Json]]) -> Figure | None:
    names = sorted({name for m, _ in drafting for name in m.entry["by_category"]})
    if len(names) < 2:
        return None
    panels, cells = [], []
    for method, _ in drafting:
        parts = [(method.entry["by_category"].get(name) or {}).get("accepted_by") or {} for name in names]
        first = [part["depth"][0]["conditional"] if part.get("depth") else (None,) * 3 for part in parts]
        panels.append(Panel(method.name, method.class_, first, joined=False))
        cells.append([method.name, *(_cell(part["depth"][0]) if part.get("depth") else text.DASH for part in parts)])
    title = "Acceptance of the first drafted token by category"
    said = ", ".join(f"{number} {name}" for number, name in enumerate(names, 1))
    caption = f"Of the steps that drafted, how many accepted a node of depth 1, with 95 % intervals. {said}."
    labels = [str(number) for number in range(1, len(names) + 1)]
    return _figure("accepted-category", title, caption, panels, labels, cells, names)


def _temperatures(methods: Sequence[Shown]) -> Figure | None:
    """A line for methods that differ in nothing else."""
    groups = by_temperature([m.entry for m in methods])
    if not groups:
        return None
    look = {m.name: m for m in methods}
    lines = [
        (look[group[0]["name"]], [(e["sampling"]["temperature"], e["accepted_by"]) for e in group]) for group in groups
    ]
    points = [(warmth, found["length"]) for _, line in lines for warmth, found in line]
    canvas = Canvas(WIDTH, 280)
    top = legend(canvas, [(m.name, m.class_, m.marker) for m, _ in lines], 50, 10, WIDTH - 10) + 6
    warmest = max(warmth for warmth, _ in points)
    x = Axis(-0.05 * warmest, 1.05 * warmest, 50, WIDTH - 14)
    y = Axis(1.0, 1.05 * max(value for _, length in points for value in length if value is not None), 236, top)
    for tick in y.ticks(5):
        canvas.line(x.start, y(tick), x.end, y(tick), "rule" if tick != 1 else "axis")
        canvas.text(x.start - 8, y(tick) + 4, f"{tick:g}", "end")
    for warmth in sorted({warmth for warmth, _ in points}):
        canvas.text(x(warmth), y.start + 17, f"{warmth:g}", "middle")
    for method, line in lines:
        for warmth, found in line:
            ratio, low, high = found["length"]
            if low is not None:
                canvas.line(x(warmth), y(max(low, 1.0)), x(warmth), y(high), f"{method.class_} bar")
            canvas.marker(x(warmth), y(ratio), method.marker, f"{method.class_} dot", 3.5)
        canvas.path([(x(warmth), y(found["length"][0])) for warmth, found in line], f"{method.class_} curve")
    canvas.labels(x, y, "temperature", "tokens a step")
    title = "Tokens a step by temperature"
    said = "; ".join(f"{m.name}: " + ", ".join(f"{f['length'][0]:.2f} at {w:g}" for w, f in line) for m, line in lines)
    cells = [
        [m.name, f"{warmth:g}", _interval(found["length"]), *(_cell(c) for c in found["depth"][:3]),
         *[text.DASH] * (3 - len(found["depth"][:3]))]
        for m, line in lines
        for warmth, found in line
    ]  # fmt: skip
    caption = "Methods that differ in nothing but the temperature, named after the coldest, with 95 % intervals."
    columns = ["method", "temperature", "tokens a step", "depth 1", "depth 2", "depth 3"]
    drawing = canvas.svg("plot-accepted-temperature", title, f"{said}.")
    return Figure("accepted-temperature", title, caption, drawing, columns, cells)


def _top(panels: Sequence[Panel]) -> float:
    return max([1.05 * value for p in panels for point in p.full for value in point if value is not None], default=2.0)


def _cell(cell: Json) -> str:
    """Shares, with the counts that they are of."""
    rate, low, high = cell["conditional"]
    between = "" if low is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{text.percent(rate)}{between} of {cell['offered']:,}; {text.percent(cell['unconditional'][0])} a step"


def _interval(length: Sequence[float | None]) -> str:
    ratio, low, high = length
    return text.DASH if ratio is None else f"{ratio:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")
