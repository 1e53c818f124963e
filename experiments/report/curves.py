"""Plots of a grid: times and speed-ups against batch, context or tree size. None where there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from specdec.experiments.grid import AXES, LETTERS
from specdec.experiments.report import text
from specdec.experiments.report.shown import Shown
from specdec.experiments.report.svg import WIDTH, Axis, Canvas, LogAxis, legend

WORDS = {"batch": "questions served together", "context": "tokens of context", "nodes": "nodes of a tree, at most"}


@dataclass(frozen=True, slots=True)
class Curve:
    """A method in cells that differ along one axis only; `points` by rising value."""

    name: str
    class_: str
    marker: int
    points: list[tuple[int, Shown]]


def curves(methods: Sequence[Shown], axis: str) -> list[Curve]:
    """Those of at least two cells. The name says where else a cell is, if its family has several curves."""
    found: dict[tuple[Any, ...], dict[int, Shown]] = {}
    for method in methods:
        cell = method.cell
        if cell is not None and cell[axis] is not None:
            others = tuple(cell[other] for other in AXES if other != axis)
            found.setdefault((cell["family"], *others), {})[cell[axis]] = method
    long = {key: sorted(points.items()) for key, points in found.items() if len(points) > 1}
    families = [key[0] for key in long]
    made = []
    for number, (key, points) in enumerate(sorted(long.items(), key=lambda pair: str(pair[0]))):
        free = [other for other in AXES if other != axis]
        said = [f"{LETTERS[a]}{v}" for a, v in zip(free, key[1:], strict=True) if v is not None]
        several = families.count(key[0]) > 1
        name = " ".join([key[0], *said]) if several else key[0]
        first = points[0][1]
        made.append(Curve(name, first.class_, number if several else first.marker, points))
    return made


def times(methods: Sequence[Shown], axis: str) -> Markup | None:
    """Seconds per output token: p50, with a bar from p20 to p80."""
    found = [c for c in curves(methods, axis) if any(m.tpot("p50") is not None for _, m in c.points)]

    def spread(method: Shown) -> tuple[float | None, float | None, float | None]:
        low, middle, high = (method.tpot(quantile) for quantile in ("p20", "p50", "p80"))
        return low, middle, high

    plain = {m.name: m for m in methods if m.class_ == "base"}
    drawn = {m.name for c in found for _, m in c.points}
    beside = [plain.get(m.entry["baseline"] or "") for c in found for _, m in c.points]
    lines = {m.name: m.tpot("p50") for m in beside if m is not None and m.name not in drawn}
    title = f"Time per output token against {axis}"
    return _draw(found, axis, spread, title, "milliseconds per output token", 1000, lines, text.milliseconds)


def speedups(methods: Sequence[Shown], axis: str) -> Markup | None:
    """Over plain decoding in the same cell, with 95 % intervals."""
    found = [c for c in curves(methods, axis) if any(m.ratio is not None for _, m in c.points)]

    def spread(method: Shown) -> tuple[float | None, float | None, float | None]:
        given = method.entry["speedup"] or {}
        return given.get("low"), given.get("ratio"), given.get("high")

    title = f"Speed-up against {axis}"
    return _draw(found, axis, spread, title, "speed-up over plain decoding", 1, {"plain decoding": 1.0}, text.times)


def _draw(
    found: Sequence[Curve], axis: str, spread: Any, title: str, what: str, factor: float, lines: Any, said: Any
) -> Markup | None:
    if not found:
        return None
    canvas = Canvas(WIDTH, 320)
    top = legend(canvas, [(c.name, c.class_, c.marker) for c in found], 56, 10, WIDTH - 10) + 6
    values = sorted({value for curve in found for value, _ in curve.points})
    known = [v for c in found for _, m in c.points for v in spread(m) if v is not None]
    known += [level for level in lines.values() if level is not None]
    x = LogAxis(values[0] / 1.15, values[-1] * 1.15, 56, WIDTH - 14)
    y = Axis(0.0, 1.08 * max(known), 276, top)
    for tick in y.ticks():
        canvas.line(x.start, y(tick), x.end, y(tick), "rule" if tick else "axis")
        canvas.text(x.start - 8, y(tick) + 4, f"{factor * tick:g}{'×' * (factor == 1)}", "end")
    for value in values:
        canvas.line(x(value), y.start, x(value), y.start + 4, "axis")
        canvas.text(x(value), y.start + 17, f"{value}", "middle")
    for level in lines.values():
        if level is not None:
            canvas.line(x.start, y(level), x.end, y(level), "even")
    words = []
    for curve in found:
        places = []
        for value, method in curve.points:
            low, middle, high = spread(method)
            if middle is None:
                continue
            places.append((x(value), y(middle)))
            if low is not None and high is not None:
                canvas.line(x(value), y(low), x(value), y(high), f"{curve.class_} bar")
            kind = "hollow" if method.label else "dot"
            canvas.marker(*places[-1], curve.marker, f"{curve.class_} {kind}", 4)
        canvas.path(places, f"{curve.class_} curve")
        told = ", ".join(f"{value}: {said(spread(m)[1])}" for value, m in curve.points)
        words.append(f"{curve.name} at {told}")
    canvas.labels(x, y, WORDS[axis], what)
    kind = "speedup" if factor == 1 else "tpot"
    return canvas.svg(f"plot-{kind}-{axis}", title, "; ".join(words) + ".")
