"""Small plots side by side, of the same lines and with the same axes: values against a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from specdec.experiments.report.svg import WIDTH, Axis, Canvas, LogAxis, legend

HEIGHT = 200.0
Point = tuple[float, float | None, float, float | None]  # x, low, middle, high


@dataclass(frozen=True, slots=True)
class Line:
    """Points by rising x; `hollow`: dashed, with hollow markers."""

    name: str
    class_: str
    marker: int
    points: Sequence[Point]
    hollow: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot; its name stands above it."""

    name: str
    lines: Sequence[Line]


def panels(
    ident: str,
    title: str,
    drawn: Sequence[Panel],
    x_label: str,
    factor: float = 1.0,
    unit: str = "",
    log: bool = False,
    even: float | None = None,
) -> Markup:
    """All in a row, under one legend.

    Args:
        factor, unit: what values are multiplied with for labels, and what stands behind them.
        log: a logarithmic scale of values.
        even: a value to compare with.
    """
    canvas = Canvas(WIDTH, 0)
    lines = {line.name: line for panel in drawn for line in panel.lines}
    entries = [(line.name, line.class_, line.marker, line.hollow) for line in lines.values()]
    top = _legend(canvas, entries) + 8
    named = any(panel.name for panel in drawn)
    canvas.height = top + HEIGHT + 14 * named
    points = [point for panel in drawn for line in panel.lines for point in line.points]
    values = [value for point in points for value in point[1:] if value is not None]
    levels = sorted({point[0] for point in points})
    base, ceiling = canvas.height - 38, top + 14 * named
    y: Axis | LogAxis = Axis(0.0, 1.06 * (max([*values, even or 0.0]) or 1.0), base, ceiling)
    if log:
        y = LogAxis(min(values) / 1.2, max(values) * 1.2, base, ceiling)
    ticks = round_ticks(y.low, y.high) if isinstance(y, LogAxis) else y.ticks()
    left = 44.0
    width = (WIDTH - left - 6) / len(drawn)
    said = []
    for number, panel in enumerate(drawn):
        start = left + number * width
        x = LogAxis(levels[0] / 1.15, levels[-1] * 1.15, start + 2, start + width - 12)
        if panel.name:
            canvas.text((x.start + x.end) / 2, ceiling - 6, panel.name, "middle", "label")
        for tick in ticks:
            canvas.line(x.start, y(tick), x.end, y(tick), "rule" if tick else "axis")
            if number == 0:
                canvas.text(x.start - 6, y(tick) + 4, f"{factor * tick:,g}{unit}", "end", "faint")
        canvas.line(x.start, base, x.end, base, "axis")
        if even is not None:
            canvas.line(x.start, y(even), x.end, y(even), "even")
        free = -math.inf
        for level in levels:
            if x(level) - free >= 13:
                canvas.text(x(level), base + 14, f"{level:g}", "middle", "faint")
                free = x(level)
        for line in panel.lines:
            _line(canvas, line, x, y)
            told = ", ".join(f"{point[0]:g}: {factor * point[2]:.4g}{unit}" for point in line.points)
            said.append(" ".join(filter(None, (panel.name, f"{line.name} at {told}"))))
    canvas.text((left + WIDTH) / 2, canvas.height - 6, x_label, "middle", "label")
    return canvas.svg(ident, title, "; ".join(said) + ".")


def _line(canvas: Canvas, line: Line, x: LogAxis, y: Axis | LogAxis) -> None:
    canvas.path([(x(p[0]), y(p[2])) for p in line.points], f"{line.class_} curve{' dashed' * line.hollow}")
    for value, low, middle, high in line.points:
        if low is not None and high is not None:
            canvas.line(x(value), y(low), x(value), y(high), f"{line.class_} bar")
        canvas.marker(x(value), y(middle), line.marker, f"{line.class_} {'hollow' if line.hollow else 'dot'}", 3)


def _legend(canvas: Canvas, entries: Sequence[tuple[str, str, int, bool]]) -> float:
    """As `svg.legend`, with hollow markers where lines are dashed."""
    before = len(canvas.parts)
    bottom = legend(canvas, [(name, class_, marker) for name, class_, marker, _ in entries], 44, 10, WIDTH - 8)
    markers = [place for place in range(before, len(canvas.parts)) if not canvas.parts[place].startswith("<text")]
    for place, (*_, hollow) in zip(markers, entries, strict=True):
        if hollow:
            canvas.parts[place] = canvas.parts[place].replace(" dot", " hollow")
    return bottom


def round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values, or powers alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) <= 7 else [10.0**p for p in powers if low <= 10.0**p <= high]
