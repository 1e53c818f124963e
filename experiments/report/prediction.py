"""The figure of a prediction: speed-up by tree budget, a line a batch, and what was measured beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from specdec.experiments.report import text
from specdec.experiments.report.figures import Figure
from specdec.experiments.report.shown import COLOURS
from specdec.experiments.report.svg import WIDTH, Axis, Canvas, legend

Json = Mapping[str, Any]
TITLE = "Predicted speed-up by tree budget"


def prediction_figures(summary: Json) -> list[Figure]:
    """None where nothing was predicted."""
    found = summary.get("prediction")
    if not found or not found["grid"]:
        return []
    caption = (
        "Lines: the fastest tree of exactly so many nodes, the root included, by its batch. Full points with bars: "
        "measured, with 95 % intervals; hollow ones: predicted for these methods' own trees. In the table, * is beyond "
        "the rows that the curve was measured with."
    )
    columns = ["batch", *(f"{nodes} nodes" for nodes in dict.fromkeys(row["nodes"] for row in found["grid"]))]
    cells = [
        [str(batch), *(_cell(row) for row in found["grid"] if row["batch"] == batch)]
        for batch in dict.fromkeys(row["batch"] for row in found["grid"])
    ]
    return [Figure("predicted", TITLE, caption, _plot(found["grid"], found["methods"]), columns, cells)]


def _cell(row: Json) -> str:
    depth = f"{row['depth']} level{'s' * (row['depth'] > 1)}"
    return f"{text.times(row['speedup'])}{'*' * row['extrapolated']}, {row['length']:.2f} tokens, {depth}"


def _plot(grid: Sequence[Json], compared: Sequence[Json]) -> Markup:
    batches = list(dict.fromkeys(row["batch"] for row in [*grid, *compared]))
    look = {batch: (f"m{number % COLOURS}", number) for number, batch in enumerate(batches)}
    canvas = Canvas(WIDTH, 320)
    top = legend(canvas, [(f"batch {batch}", *look[batch]) for batch in batches], 50, 10, WIDTH - 10) + 6
    nodes = [row["nodes"] for row in [*grid, *compared]]
    highs = [row["measured"]["high"] or row["measured"]["speedup"] for row in compared]
    highest = max([*(row["speedup"] for row in grid), *highs, *(row["predicted"]["speedup"] for row in compared), 1.0])
    x = Axis(math.log2(min(nodes)) - 0.3, math.log2(max(nodes)) + 0.3, 50, WIDTH - 14)
    y = Axis(0.0, 1.08 * highest, 276, top)
    for tick in y.ticks(5):
        canvas.line(x.start, y(tick), x.end, y(tick), "rule" if tick else "axis")
        canvas.text(x.start - 8, y(tick) + 4, f"{tick:g}×", "end")
    canvas.line(x.start, y(1.0), x.end, y(1.0), "even")
    for budget in sorted({row["nodes"] for row in grid}):
        canvas.text(x(math.log2(budget)), y.start + 17, str(budget), "middle")
    for batch in batches:
        line = [(x(math.log2(row["nodes"])), y(row["speedup"])) for row in grid if row["batch"] == batch]
        if line:
            canvas.path(line, f"{look[batch][0]} curve")
    for row in compared:
        class_, marker = look[row["batch"]]
        place, found = x(math.log2(row["nodes"])), row["measured"]
        if found["low"] is not None:
            canvas.line(place, y(max(found["low"], 0.0)), place, y(found["high"]), f"{class_} bar")
        canvas.marker(place, y(row["predicted"]["speedup"]), marker, f"{class_} hollow", 4)
        canvas.marker(place, y(found["speedup"]), marker, f"{class_} dot", 4.5)
    canvas.labels(x, y, "nodes of the tree, the root included", "speed-up over plain decoding")
    said = "; ".join(
        f"{row['method']} {text.times(row['predicted']['speedup'])} predicted, "
        f"{text.times(row['measured']['speedup'])} measured"
        for row in compared
    )
    return canvas.svg("plot-predicted", TITLE, f"{said or 'Nothing was measured'}.")
