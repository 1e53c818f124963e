"""Plots with a row for each method or category: phase shares, times per token, lengths. None where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from specdec.experiments.report import text
from specdec.experiments.report.shown import Shown, length_of
from specdec.experiments.report.svg import WIDTH, Axis, Canvas, legend
from specdec.metrics import DECODING_PHASES

DOTS = 200  # of a method, at most


def phases(methods: Sequence[Shown]) -> Markup | None:
    """Shares of decoding time as stacked bars."""
    bars = [m for m in methods if any(m.shares.get(p) for p in DECODING_PHASES)]
    if not bars:
        return None

    def draw(canvas: Canvas, method: Shown, top: float) -> None:
        if method.step_seconds is not None:
            canvas.text(WIDTH - 8, top + 10, f"{text.milliseconds(method.step_seconds)} ms a step", "end", "faint")
        left = 8.0
        for phase in DECODING_PHASES:
            width = (method.shares.get(phase) or 0.0) * (WIDTH - 16)
            canvas.add("rect", x=left, y=top + 16, width=max(width - 1, 0.0), height=18, class_=phase)
            if width > 34:
                words = text.percent(method.shares.get(phase))
                canvas.text(left + width / 2, top + 29, words, "middle", f"on {phase}")
            left += width

    canvas = _rows(bars, 42, draw, [(phase, phase, -1) for phase in DECODING_PHASES])
    said = [f"{m.name}: " + ", ".join(f"{p} {text.percent(m.shares.get(p))}" for p in DECODING_PHASES) for m in bars]
    return canvas.svg("plot-phases", "Where decoding time goes", "; ".join(said) + ".")


def tpots(methods: Sequence[Shown]) -> Markup | None:
    """Time per output token."""
    found = [(m, m.tpots, m.tpot) for m in methods]
    return _times("tpot", "Time per output token", "milliseconds per output token after the first", found)


def ttfts(methods: Sequence[Shown]) -> Markup | None:
    """Time to the first token."""
    found = [(m, m.ttfts, m.ttft) for m in methods]
    return _times("ttft", "Time to first token", "milliseconds to the first token", found)


Times = tuple[Shown, Sequence[float], Callable[[str], float | None]]  # a method, a time a request, and quantiles


def _times(ident: str, title: str, what: str, found: Sequence[Times]) -> Markup | None:
    """A dot a request, a box from p20 to p80, a line at p50, a tick at p99."""
    dotted = {m.name: (values, quantile) for m, values, quantile in found if len(values)}
    if not dotted:
        return None
    # a few stragglers must not squeeze the rest: what lies beyond is counted at the edge
    most = [max(values) for values, _ in dotted.values()]
    usual = [2.5 * sorted(values)[int(0.8 * (len(values) - 1))] for values, _ in dotted.values()]
    x = Axis(0.0, 1.05 * min(max(most), max(usual)) or 1.0, 8, WIDTH - 14)

    def draw(canvas: Canvas, method: Shown, top: float) -> None:
        given, quantile = dotted[method.name]
        values = sorted(given)
        for i, value in enumerate(values[:: 1 + len(values) // DOTS]):
            if value <= x.high:
                lift = (i * 0.618 % 1 - 0.5) * 12  # spread evenly, the same every time
                canvas.add("circle", cx=x(value), cy=top + 25 + lift, r=1.8, class_=f"{method.class_} speck")
        low, middle, high, last = (quantile(name) for name in ("p20", "p50", "p80", "p99"))
        if low is not None and high is not None and middle is not None:
            wide = max(x(high) - x(low), 1.0)
            canvas.add("rect", x=x(low), y=top + 16.0, width=wide, height=18, rx=2, class_=f"{method.class_} box")
            canvas.line(x(middle), top + 14, x(middle), top + 36, f"{method.class_} middle")
            told = f"p50 {text.milliseconds(middle)} ms, p99 {text.milliseconds(last)} ms"
            canvas.text(WIDTH - 8, top + 10, told, "end", "faint")
        if last is not None and last <= x.high:
            canvas.line(x(last), top + 19, x(last), top + 31, f"{method.class_} bar")
        beyond = sum(value > x.high for value in values)
        if beyond:
            canvas.text(WIDTH - 8, top + 29, f"{beyond} beyond →", "end", "faint halo")

    canvas = _rows([m for m, values, _ in found if len(values)], 44, draw, [], foot=40)
    _ruler(canvas, x, what, 1000)
    said = [f"{name} {text.milliseconds(quantile('p50'))} ms" for name, (_, quantile) in dotted.items()]
    return canvas.svg(f"plot-{ident}", title, "Medians over requests: " + ", ".join(said) + ".")


def categories(methods: Sequence[Shown]) -> Markup | None:
    """Mean accepted length of every method, a row a category."""
    names = sorted({c for m in methods for c in m.entry["by_category"]})
    lengths = {(m.name, c): length_of(part) for m in methods for c, part in m.entry["by_category"].items()}
    drafting = [m for m in methods if m.class_ != "base" and any(lengths.get((m.name, c)) for c in names)]
    if not drafting:
        return None
    canvas = Canvas(WIDTH, 0)
    top = legend(canvas, [(m.name, m.class_, m.marker) for m in drafting], 8, 8, WIDTH - 8) + 8
    x = Axis(1.0, 1.05 * max(max(v for v in lengths.values() if v), 1.2), 90, WIDTH - 14)
    said = []
    for name in names:
        canvas.text(x.start - 10, top + 14, name if len(name) < 14 else name[:12] + "…", "end", "name")
        canvas.line(x.start, top + 10, x.end, top + 10, "rule")
        for method in drafting:
            length = lengths.get((method.name, name))
            if length is not None:
                kind = "hollow" if method.label else "dot"
                canvas.marker(x(length), top + 10, method.marker, f"{method.class_} {kind}", 5)
        said.append(f"{name}: " + ", ".join(f"{m.name} {text.number(lengths.get((m.name, name)))}" for m in drafting))
        top += 34
    canvas.height = top + 40
    _ruler(canvas, x, "mean accepted length (tokens a step, pooled)")
    return canvas.svg("plot-categories", "Mean accepted length by category", "; ".join(said) + ".")


def _ruler(canvas: Canvas, x: Axis, label: str, factor: float = 1) -> None:
    """The axis at the foot."""
    base = canvas.height - 34
    canvas.line(x.start, base, x.end, base, "axis")
    for tick in x.ticks(6):
        canvas.line(x(tick), base, x(tick), base + 4, "axis")
        canvas.text(x(tick), base + 16, f"{factor * tick:g}", "middle")
    canvas.text((x.start + x.end) / 2, canvas.height - 3, label, "middle", "label")


def _rows(
    methods: Sequence[Shown],
    height: float,
    draw: Callable[[Canvas, Shown, float], None],
    entries: Sequence[tuple[str, str, int]],
    foot: float = 0,
) -> Canvas:
    """A canvas with a named row for each method, under a legend."""
    canvas = Canvas(WIDTH, 0)
    top = legend(canvas, entries, 8, 8, WIDTH - 8) + 6 if entries else 4.0
    for method in methods:
        canvas.marker(14, top + 6, method.marker, f"{method.class_} dot", 4)
        canvas.text(24, top + 10, method.name, class_="name")
        draw(canvas, method, top)
        top += height
    canvas.height = top + foot
    return canvas
