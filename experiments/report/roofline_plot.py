"""The roofline: what steps reach of the machine, by how much they compute for a byte. None where it is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from specdec.experiments.report import text
from specdec.experiments.report.shown import Shown
from specdec.experiments.report.svg import WIDTH, Canvas, LogAxis, legend
from specdec.experiments.roofline import shown as number

Point = tuple[Shown, str, float, float]  # method, part, FLOP per byte, FLOP per second


def points(methods: Sequence[Shown]) -> list[Point]:
    """Of every step that was timed."""
    found = []
    for method in methods:
        for part in ("verify_step", "draft_step"):
            x, flops, seconds = (number(method.entry["metrics"], part, k) for k in ("intensity", "flops", "seconds"))
            if x and flops and seconds:
                found.append((method, part, x, flops / seconds))
    return found


def roofline(methods: Sequence[Shown], machine: Mapping[str, Any] | None, dtype: str | None) -> Markup | None:
    """Both axes logarithmic; filled: the target's step, hollow: the drafter's."""
    found = points(methods)
    if machine is None or not found or dtype not in machine["flops"]:
        return None
    bandwidth, ceilings = machine["bandwidth"], machine["flops"]
    roof = ceilings[dtype]
    xs = [x for _, _, x, _ in found] + [roof / bandwidth]
    low, high = min(xs) / 2, max(xs) * 3
    bottom = min([y for *_, y in found] + [low * bandwidth]) / 2
    families = {(m.family, m.class_, m.marker): None for m, *_ in found}
    canvas = Canvas(WIDTH, 380)
    top = legend(canvas, list(families), 62, 10, WIDTH - 10) + 6
    x, y = LogAxis(low, high, 62, WIDTH - 14), LogAxis(bottom, 2 * max(ceilings.values()), 336, top)
    for tick in y.ticks():
        canvas.line(x.start, y(tick), x.end, y(tick), "rule")
        canvas.text(x.start - 6, y(tick) + 4, text.large(tick), "end")
    for tick in x.ticks():
        canvas.line(x(tick), y.start, x(tick), y.start + 4, "axis")
        canvas.text(x(tick), y.start + 17, f"{tick:g}", "middle")
    canvas.line(x.start, y.start, x.end, y.start, "axis")
    for kind, rate in ceilings.items():
        style = "roof" if kind == dtype else "even"
        canvas.line(x(rate / bandwidth), y(rate), x.end, y(rate), style)
        canvas.text(x.end, y(rate) - 5, f"{kind} {text.large(rate, 'FLOP/s')}", "end", "name halo")
    highest = max(ceilings.values())
    start = max(low, bottom / bandwidth)
    canvas.line(x(start), y(start * bandwidth), x(highest / bandwidth), y(highest), "roof")
    middle = (start * roof / bandwidth) ** 0.5
    canvas.text(x(middle) - 6, y(middle * bandwidth) - 6, text.large(bandwidth, "B/s"), "end", "name halo")
    for method, part, px, py in found:
        style = "dot" if part == "verify_step" else "hollow"
        canvas.marker(x(px), y(py), method.marker, f"{method.class_} {style}", 4.5)
    canvas.labels(x, y, "intensity (FLOP per byte)", "FLOP per second")
    said = [
        f"{m.name} {part.replace('_', ' ')}: {px:.3g} FLOP per byte, {text.large(py, 'FLOP/s')}"
        for m, part, px, py in found
    ]
    return canvas.svg("plot-roofline", "Roofline", "; ".join(said) + ".")
