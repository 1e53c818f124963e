"""Just enough to draw plots as SVG by hand: text stays text, colours stay CSS variables, so dark mode just works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH = 480.0  # of every plot, so that their texts have one size
CHARACTER = 6.4  # width of one at the plots' font size of 11, on average
MARKERS = 6
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from values to units of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 5, whole: bool = False) -> list[float]:
        """About `count` round values."""
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
        step = max(math.ceil(step), 1) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class LogAxis:
    """A logarithmic scale; `low` is above 0."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Powers of 10, or of 1000 where those are many."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**power for power in range(first, last + 1) if last - first < 9 or power % 3 == 0]


@dataclass(slots=True)
class Canvas:
    """A drawing of fixed inner size; the page scales it to its column."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def add(self, tag: str, content: str = "", **attributes: object) -> None:
        """An element. `class_` and underscores are put right; everything is escaped."""
        given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        values = {n: f"{v:.1f}" if isinstance(v, float) else v for n, v in given.items()}
        head = "".join(f' {n}="{escape(str(v))}"' for n, v in values.items())
        self.parts.append(f"<{tag}{head}>{escape(content)}</{tag}>" if content else f"<{tag}{head}/>")

    def text(self, x: float, y: float, content: str, anchor: str = "start", class_: str = "") -> None:
        """A line of text, its baseline at `y`."""
        self.add("text", content, x=x, y=y, text_anchor=anchor, class_=class_)

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        """A straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)

    def path(self, points: Sequence[tuple[float, float]], class_: str) -> None:
        """A line through points."""
        steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        self.add("path", d=steps, class_=class_)

    def marker(self, x: float, y: float, kind: int, class_: str, size: float = 4.5) -> None:
        """A circle, square, triangle, diamond, triangle upside down or pentagon: methods differ without colour too."""
        kind %= MARKERS
        if kind == 0:
            self.add("circle", cx=x, cy=y, r=size, class_=class_)
            return
        corners, turn = {1: (4, 45), 2: (3, 0), 3: (4, 0), 4: (3, 180), 5: (5, 0)}[kind]
        angles = [math.radians(turn - 90 + 360 * i / corners) for i in range(corners)]
        points = " ".join(f"{x + 1.2 * size * math.cos(a):.1f},{y + 1.2 * size * math.sin(a):.1f}" for a in angles)
        self.add("polygon", points=points, class_=class_)

    def labels(self, x: Axis | LogAxis, y: Axis | LogAxis, x_label: str, y_label: str) -> None:
        """What the axes are."""
        self.text((x.start + x.end) / 2, self.height - 4, x_label, "middle", "label")
        middle = (y.start + y.end) / 2
        turn = f"rotate(-90 11 {middle:.0f})"
        self.add("text", y_label, x=11.0, y=middle, text_anchor="middle", class_="label", transform=turn)

    @property
    def content(self) -> Markup:
        """All elements; each was escaped when it was added."""
        return Markup("".join(self.parts))

    def svg(self, ident: str, title: str, description: str) -> Markup:
        """The whole element, with a name and a description for those who cannot see it."""
        return Markup(
            '<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{ident}-title {ident}-desc">'
            '<title id="{ident}-title">{title}</title><desc id="{ident}-desc">{description}</desc>{content}</svg>'
        ).format(
            width=self.width,
            height=self.height,
            ident=ident,
            title=title,
            description=description,
            content=self.content,
        )


def legend(canvas: Canvas, entries: Sequence[tuple[str, str, int]], left: float, top: float, right: float) -> float:
    """Names with their markers (name, class, marker; -1: a box), as many a row as fit; returns where it ends."""
    x, y = left, top
    for name, class_, kind in entries:
        width = 16 + CHARACTER * len(name) + 14
        if x > left and x + width - 14 > right:
            x, y = left, y + 16
        if kind < 0:
            canvas.add("rect", x=x, y=y - 5.0, width=10, height=10, rx=2, class_=class_)
        else:
            canvas.marker(x + 5, y, kind, f"{class_} dot")
        canvas.text(x + 15, y + 4, name)
        x += width
    return y + 14
