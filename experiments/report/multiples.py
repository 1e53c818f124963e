"""Small multiples: the same plot once a method, on the same axes, three in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from specdec.experiments.report.svg import WIDTH, Axis, Canvas

COLUMNS = 3
HEIGHT = 122.0  # of a panel
MOST_LABELS = 8  # below a panel
NAME = 24  # characters of a panel's
Point = Sequence[float | None]  # ratio, low, high; None where there is none


@dataclass(frozen=True, slots=True)
class Panel:
    """A method's.

    Attributes:
        class_: its colour.
        full, hollow: points at 0, 1, ...; those of `full` have their intervals.
        joined: by a line, in their order.
        cells: in place of points, shares by row and column, from the top.
    """

    name: str
    class_: str
    full: Sequence[Point] = ()
    hollow: Sequence[Point] = ()
    joined: bool = True
    cells: Sequence[Sequence[float | None]] = ()


def multiples(
    ident: str, title: str, panels: Sequence[Panel], labels: Sequence[str], top: float, percent: bool, low: float = 0.0
) -> Markup | None:
    """All panels; None where there is none.

    Args:
        labels: of the places 0, 1, ... on the horizontal axis.
        top, low: ends of the vertical axis.
        percent: what is on it are shares.
    """
    if not panels:
        return None
    width = WIDTH / COLUMNS
    canvas = Canvas(WIDTH, HEIGHT * -(-len(panels) // COLUMNS))
    for number, panel in enumerate(panels):
        left, above = number % COLUMNS * width, number // COLUMNS * HEIGHT
        x = Axis(-0.5, len(labels) - 0.5, left + 34, left + width - 6)
        y = Axis(low, top, above + HEIGHT - 22, above + 24)
        canvas.text(left + 4, above + 13, panel.name[:NAME], class_="label")
        every = -(-len(labels) // MOST_LABELS)
        for place in range(0, len(labels), every):
            canvas.text(x(place), y.start + 14, labels[place], "middle", "faint")
        if panel.cells:
            _cells(canvas, panel, x, y)
            continue
        for tick in (low, (low + top) / 2, top):
            canvas.line(x.start, y(tick), x.end, y(tick), "rule" if tick != low else "axis")
            words = f"{100 * tick:.0f} %" if percent else f"{tick:.1f}"
            canvas.text(x.start - 4, y(tick) + 4, words, "end", "faint")
        _points(canvas, panel, x, y)
    said = "; ".join(f"{p.name}: {', '.join(_said(point, percent) for point in p.full[:6])}" for p in panels if p.full)
    return canvas.svg(f"plot-{ident}", title, f"{said or title}.")


def _points(canvas: Canvas, panel: Panel, x: Axis, y: Axis) -> None:
    line: list[tuple[float, float]] = []
    for place, (ratio, low, high) in enumerate(panel.full):
        if ratio is None:
            continue
        line.append((x(place), y(ratio)))
        if low is not None and high is not None:
            ends = [min(max(end, y.low), y.high) for end in (low, high)]
            canvas.line(x(place), y(ends[0]), x(place), y(ends[1]), f"{panel.class_} bar")
        canvas.marker(*line[-1], 0, f"{panel.class_} dot", 2.6)
    if panel.joined and len(line) > 1:
        canvas.path(line, f"{panel.class_} curve")
    for place, (ratio, *_) in enumerate(panel.hollow):
        if ratio is not None:
            canvas.marker(x(place), y(ratio), 0, f"{panel.class_} hollow", 2.4)


def _cells(canvas: Canvas, panel: Panel, x: Axis, y: Axis) -> None:
    """Shaded by their share, which stands in them in percent."""
    height = (y.start - y.end) / len(panel.cells)
    width = x(1) - x(0)
    for row, shares in enumerate(panel.cells):
        above = y.end + row * height
        canvas.text(x.start - 6, above + height / 2 + 4, f"{row + 1}", "end", "faint")
        for column, share in enumerate(shares):
            if share is None:
                continue
            shade, left = f"{0.04 + 0.5 * share:.2f}", x(column) - width / 2
            class_ = f"{panel.class_} dot"
            canvas.add("rect", x=left, y=above, width=width, height=height, class_=class_, fill_opacity=shade)
            if width > 13 and height > 9:
                canvas.text(x(column), above + height / 2 + 4, f"{100 * share:.0f}", "middle", "label faint")


def _said(point: Point, percent: bool) -> str:
    ratio = point[0]
    return "–" if ratio is None else f"{100 * ratio:.0f} %" if percent else f"{ratio:.2f}"
