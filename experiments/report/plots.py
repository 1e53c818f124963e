"""Plots with two axes: speed-up against mean accepted length, and acceptance by depth. None where there is nothing."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from specdec.experiments.report import text
from specdec.experiments.report.shown import Shown
from specdec.experiments.report.svg import CHARACTER, WIDTH, Axis, Box, Canvas, legend

COSTS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


def speedup(methods: Sequence[Shown]) -> Markup | None:
    """Speed-up against mean accepted length, with lines of equal cost per step."""
    points = [(m, m.length, m.ratio) for m in methods if m.length is not None and m.ratio is not None]
    if not points:
        return None
    highest = max([(m.entry["speedup"].get("high") or ratio) for m, _, ratio in points])
    x = Axis(1.0, max(1.06 * max(length for _, length, _ in points), 1.5), 46, WIDTH - 46)
    y = Axis(0.0, 1.12 * max(highest, 1.0), 296, 18)
    canvas = Canvas(WIDTH, 340)
    places = [(x(length), y(ratio)) for _, length, ratio in points]
    taken: list[Box] = [(px - 6, py - 6, px + 6, py + 6) for px, py in [*places, (x(1.0), y(1.0))]]
    _equal_costs(canvas, x, y, max(length / ratio for _, length, ratio in points if ratio), taken)
    canvas.line(x.start, y.start, x.start, y.end, "axis")
    canvas.line(x.start, y.start, x.end, y.start, "axis")
    canvas.line(x.start, y(1.0), x.end, y(1.0), "even")
    for tick in y.ticks():
        canvas.line(x.start - 4, y(tick), x.start, y(tick), "axis")
        canvas.text(x.start - 8, y(tick) + 4, f"{tick:g}×", "end")
    for tick in x.ticks(6):
        canvas.line(x(tick), y.start, x(tick), y.start + 4, "axis")
        canvas.text(x(tick), y.start + 17, f"{tick:g}", "middle")
    canvas.marker(x(1.0), y(1.0), 0, "base dot")
    for (method, _, _), (px, py) in zip(points, places):
        found = method.entry["speedup"]
        if found.get("low") is not None and found.get("high") is not None:
            canvas.line(px, y(found["low"]), px, y(found["high"]), f"{method.class_} bar")
        canvas.marker(px, py, method.marker, f"{method.class_} {'hollow' if method.label else 'dot'}", 5.5)
    said = []
    for (method, length, ratio), (px, py) in zip(points, places):
        words = method.name + (f" ({method.label})" if method.label else "")
        _place(canvas, words, px, py, taken, x)
        said.append(f"{words} {text.times(ratio)} at {length:.2f} tokens a step")
    canvas.labels(x, y, "mean accepted length (tokens a step, pooled)", "speed-up over plain decoding")
    return canvas.svg("plot-speedup", "Speed-up against mean accepted length", "; ".join(said) + ".")


def _equal_costs(canvas: Canvas, x: Axis, y: Axis, dearest: float, taken: list[Box]) -> None:
    """Lines speed-up = length / cost, up to what the dearest step costs. Their words go into `taken`."""
    for cost in [c for c in COSTS if c <= max(1.5 * dearest, 1.5)]:
        right = min(x.high, cost * y.high)
        canvas.line(x(1.0), y(1 / cost), x(right), y(right / cost), "iso")
        words = f"{'costs ' * (cost == 1)}{cost:g}×"
        if right < x.high:
            canvas.text(x(right), y.end - 4, words, "middle", "faint")
        else:
            level = y(right / cost)
            canvas.text(x.end + 3, level + 3, words, class_="faint")
            taken.append((x.end, level - 7, x.end + 44, level + 5))


def _place(canvas: Canvas, words: str, px: float, py: float, taken: list[Box], x: Axis) -> None:
    """Put words beside a point where nothing is yet."""
    width = CHARACTER * len(words)
    spots = [(10, 4), (-14 - width, 4), (10, -9), (10, 17), (-14 - width, -9), (-14 - width, 17)]
    spots += [(-width / 2, dy) for dy in (-14, 22, -28, 36, 50, -42)]
    boxes = [(px + dx, py + dy - 10, px + dx + width, py + dy + 3) for dx, dy in spots]
    inside = [b for b in boxes if b[0] > x.start and b[2] < x.end + 44 and b[1] > 4]
    free = [b for b in inside if not any(b[0] < t[2] and t[0] < b[2] and b[1] < t[3] and t[1] < b[3] for t in taken)]
    box = (free or inside or boxes)[0]
    taken.append(box)
    canvas.text(box[0], box[3] - 3, words, class_="name halo")


def depths(methods: Sequence[Shown], kind: str) -> Markup | None:
    """Acceptance by depth, `conditional` or `unconditional`."""
    curves = [(m, m.depths(kind)) for m in methods if any(rate is not None for rate in m.depths(kind))]
    if not curves:
        return None
    canvas = Canvas(WIDTH, 320)
    top = legend(canvas, [(m.name, m.class_, m.marker) for m, _ in curves], 64, 10, WIDTH - 10) + 6
    x = Axis(0.75, max(len(rates) for _, rates in curves) + 0.25, 64, WIDTH - 14)
    y = Axis(0.0, 1.0, 276, top)
    for tick in y.ticks(5):
        canvas.line(x.start, y(tick), x.end, y(tick), "rule" if tick else "axis")
        canvas.text(x.start - 8, y(tick) + 4, f"{100 * tick:.0f} %", "end")
    for tick in x.ticks(10, whole=True):
        canvas.text(x(tick), y.start + 17, f"{tick:g}", "middle")
    for method, rates in curves:
        line: list[tuple[float, float]] = []
        for depth, rate in [*enumerate(rates, 1), (0, None)]:
            if rate is not None:
                line.append((x(depth), y(rate)))
                canvas.marker(*line[-1], method.marker, f"{method.class_} dot", 3.5)
            elif line:
                canvas.path(line, f"{method.class_} curve")
                line = []
    what = "accepted, given the walk came there" if kind == "conditional" else "share of steps that accepted it"
    canvas.labels(x, y, "depth in the tree", what)
    said = [f"{m.name}: " + ", ".join(text.percent(r) for r in rates[:8]) for m, rates in curves]
    return canvas.svg(f"plot-depth-{kind}", f"Acceptance by depth, {kind}", "From depth 1 on. " + "; ".join(said) + ".")
