"""A time line of slots: a row a slot, a bar a request, its prompt in one colour and its text in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from specdec.experiments.load.serve import READ
from specdec.experiments.load.settings import BATCHING, CLOSED, OPEN, SPECULATION
from specdec.experiments.records import Row
from specdec.experiments.report.figures import Figure
from specdec.experiments.report.svg import WIDTH, Axis, Canvas, legend

Json = Mapping[str, Any]
MOST_SLOTS = 8  # of a time line, where there is one with so few, so that its rows can be told apart
ROW, LEAST_ROW = 15.0, 5.0
LEFT = 44.0


def slot_figures(cells: Sequence[Json], requests: Sequence[Row]) -> list[Figure]:
    """Of the largest closed loop with few enough slots, else the smallest, both kinds of batching, on one scale; of the
    fastest open loop in flight."""
    closed = [cell for cell in cells if cell["loop"] == CLOSED]
    levels = sorted({cell["level"] for cell in closed})
    level = ([n for n in levels if n <= MOST_SLOTS][-1:] or levels[:1] or [None])[0]
    beside = [c for c in closed if c["level"] == level and c["speculation"] == _shown(closed)]
    opened = [c for c in cells if c["loop"] == OPEN and c["batching"] == BATCHING[0]]
    latest = [c for c in opened if c["speculation"] == _shown(opened)][-1:]
    found = []
    for group in (beside, latest):
        rows = {
            cell["name"]: [r for r in requests if r["method"] == cell["name"] and r["repeat"] == 0] for cell in group
        }
        last = max([row["end"] for own in rows.values() for row in own], default=0.0)
        found += [_figure(cell, rows[cell["name"]], last) for cell in group if rows[cell["name"]]]
    return found


def _shown(cells: Sequence[Json]) -> str:
    """Which speculation: on, where it was measured."""
    measured = {cell["speculation"] for cell in cells}
    return next((name for name in (SPECULATION[1], *SPECULATION) if name in measured), SPECULATION[0])


def _figure(cell: Json, rows: Sequence[Row], last: float) -> Figure:
    how = "in flight" if cell["batching"] == BATCHING[0] else "static batches"
    where = f"{cell['level']:g} at once" if cell["loop"] == CLOSED else f"arrivals at {cell['level']:g} × capacity"
    title = f"Time line of slots: {how}, {where}, speculation {cell['speculation']}"
    caption = (
        f"A row is a slot, a bar a request; first round, {len(rows)} requests. Gaps are empty slots."
        + " A red line ends what a preempted request had." * any(row["preemptions"] for row in rows)
        + " A tick below is an arrival." * (cell["loop"] == OPEN)
    )
    cells = [
        [
            f"{row['request']}",
            f"{row['visits'][0][0] + 1}" if row["visits"] else "–",
            *(f"{1000 * row[name]:,.0f}" for name in ("due", "queue", "ttft", "end")),
            f"{row['new_tokens']}",
            f"{row['preemptions']}",
        ]
        for row in rows
    ]
    columns = ["request", "slot", "due ms", "queue ms", "TTFT ms", "end ms", "new tokens", "preemptions"]
    return Figure(
        f"slots-{cell['name']}".replace(".", "-"), title, caption, draw(cell, rows, last, title), columns, cells
    )


def draw(cell: Json, rows: Sequence[Row], last: float, title: str) -> Markup:
    """`last`: seconds that the drawing reaches to."""
    slots = cell["slots"]
    height = ROW if slots <= MOST_SLOTS else max(ROW * MOST_SLOTS / slots, LEAST_ROW)
    canvas = Canvas(WIDTH, 0)
    entries = [("prompt read", "read", -1), ("text written", "decode", -1)]
    top = legend(canvas, entries, LEFT, 8, WIDTH) + 4
    ticks = 8.0 if cell["loop"] == OPEN else 0.0
    base = top + height * slots + ticks + 4
    canvas.height = base + 38
    gap = 2 * height / ROW
    x = Axis(0.0, last or 1.0, LEFT, WIDTH - 10)
    for slot in range(slots):
        middle = top + height * slot + height / 2
        canvas.line(x.start, middle, x.end, middle, "rule")
        if slots <= MOST_SLOTS:
            canvas.text(x.start - 8, middle + 4, f"{slot + 1}", "end", "faint")
    for row in rows:
        for number, (slot, what, start, end) in enumerate(row["visits"]):
            y, left, right = top + height * slot + gap, x(start), x(end)
            width = max(right - left - 0.6 * (number == len(row["visits"]) - 1), 0.4)
            canvas.add("rect", x=left, y=y, width=width, height=height - 2 * gap, class_=what)
            if number + 1 < len(row["visits"]) and row["visits"][number + 1][1] == READ:
                canvas.line(right, y - gap / 2, right, y + height - 1.5 * gap, "sent")
        if ticks:
            canvas.line(x(row["due"]), base - ticks - 2, x(row["due"]), base - 2, "axis")
    canvas.line(x.start, base, x.end, base, "axis")
    for tick in x.ticks(6):
        canvas.line(x(tick), base, x(tick), base + 4, "axis")
        canvas.text(x(tick), base + 16, f"{tick:g}", "middle", "faint")
    canvas.text((x.start + x.end) / 2, canvas.height - 4, "seconds", "middle", "label")
    canvas.add("text", "slot", x=11.0, y=(top + base) / 2, text_anchor="middle", class_="label",
               transform=f"rotate(-90 11 {(top + base) / 2:.0f})")  # fmt: skip
    busy = cell["metrics"]["slot_use"]
    told = (
        f"{len(rows)} requests in {slots} slots, {100 * busy:.0f} % of the slots' time in use"
        if busy
        else f"{len(rows)} requests"
    )
    return canvas.svg(f"plot-slots-{cell['name']}".replace(".", "-"), title, told + ".")
