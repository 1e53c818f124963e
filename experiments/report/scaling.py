"""The page of a run that timed steps: how their cost grows along every axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

import specdec
from specdec.experiments.report import text
from specdec.experiments.report.figures import Figure
from specdec.experiments.report.run_files import RunFiles
from specdec.experiments.report.svg import WIDTH, Axis, Canvas
from specdec.experiments.scaling.fit import FIXED_POINTS, at_the_limit

Json = Mapping[str, Any]
HEIGHT = 190.0  # of a panel, two in a row
LAWS = {"power": "a power law", "fixed": "a power law above a fixed cost"}
LABEL = 30.0  # between two labels below a panel
POOR = 0.9  # R2 below which neither law is said to hold
UNITS = {"context": "committed tokens", "nodes": "nodes of the tree", "batch": "sequences", "vocabulary": "tokens"}


def scaling_page(run: RunFiles, environment: jinja2.Environment, css: Markup, facts: Sequence[tuple[str, str]]) -> str:
    """See `page.render`."""
    axes = run.summary["scaling"]["axes"]
    return environment.get_template("scaling.html.j2").render(
        run=run,
        summary=run.summary,
        version=specdec.__version__,
        css=css,
        facts=facts,
        axes=axes,
        at=", ".join(f"{name} {value:,}" for name, value in run.summary["scaling"]["at"].items()),
        sentences=[sentence(name, axis) for name, axis in axes.items()],
        laws=LAWS,
        exponent=exponent,
        share=fixed_share,
        figures=[figure(axes)],
    )


def sentence(name: str, axis: Json) -> str:
    """What may be said of one axis."""
    first, last = axis["points"][0]["value"], axis["points"][-1]["value"]
    start = f"{name.capitalize()}, {first:,} to {last:,}: a step costs {axis['growth']:.2f} times as much"
    law = axis[axis["told"]]
    if law["r2"] < POOR and len(axis["points"]) < FIXED_POINTS:
        return f"{start}; no power law describes that (R² {law['r2']:.2f}), and for another there are too few points."
    if law["r2"] < POOR:
        return f"{start}; neither law describes that (R² {axis['power']['r2']:.2f} and {axis['fixed']['r2']:.2f})."
    if at_the_limit(law):
        return f"{start}; a part of it is fixed, and the times do not say how the rest grows."
    grows = f"grows with the power {exponent(law)}"
    if axis["told"] == "fixed":
        grows = f"is {text.percent(fixed_share(axis))} fixed at the end, and the rest {grows}"
    return f"{start}; it {grows} (R² {law['r2']:.3f})."


def exponent(law: Json) -> str:
    """With its interval."""
    return f"{law['exponent']:.2f} [{law['low']:.2f}, {law['high']:.2f}]"


def fixed_share(axis: Json) -> float:
    """Of the last point's time."""
    return float(axis["fixed"]["fixed"] / axis["points"][-1]["seconds"]["p50"])


def figure(axes: Json) -> Figure:
    """All axes, both logarithmic."""
    canvas = Canvas(WIDTH, HEIGHT * -(-len(axes) // 2))
    for number, (name, axis) in enumerate(axes.items()):
        _panel(canvas, name, axis, number % 2 * WIDTH / 2, number // 2 * HEIGHT, f"m{number}")
    title = "A step's cost along each axis"
    cells = [
        [f"{name} {point['value']:,}", *(text.milliseconds(point["seconds"][q]) for q in ("p20", "p50", "p80"))]
        for name, axis in axes.items()
        for point in axis["points"]
    ]
    caption = (
        "Milliseconds a step, both axes logarithmic. Points are medians over rounds, bars span the 20th to the 80th "
        "percentile. The full line is the law that is told, the dashed one the other."
    )
    drawing = canvas.svg("plot-scaling", title, " ".join(sentence(name, axis) for name, axis in axes.items()))
    return Figure("scaling", title, caption, drawing, ["point", "p20 ms", "p50 ms", "p80 ms"], cells)


def _panel(canvas: Canvas, name: str, axis: Json, left: float, above: float, class_: str) -> None:
    points = axis["points"]
    values = [point["value"] for point in points]
    times = [point["seconds"][q] for point in points for q in ("p20", "p50", "p80")]
    low, high = math.log(min(times)), math.log(max(times))
    room = max(0.06 * (high - low), 0.02)
    x = Axis(math.log(values[0]), math.log(values[-1]), left + 44, left + WIDTH / 2 - 14)
    y = Axis(low - room, high + room, above + HEIGHT - 38, above + 24)
    canvas.text(left + 44, above + 13, name, class_="label")
    for tick in (low, (low + high) / 2, high):
        canvas.line(x.start, y(tick), x.end, y(tick), "rule")
        canvas.text(x.start - 4, y(tick) + 4, text.milliseconds(math.exp(tick)), "end", "faint")
    canvas.line(x.start, y.start, x.end, y.start, "axis")
    free = math.inf
    for value in reversed(values):  # the last one is always labelled
        if free - x(math.log(value)) < LABEL:
            continue
        free = x(math.log(value))
        words = f"{value}" if value < 1000 else f"{value / 1000:.3g}k"
        canvas.text(x(math.log(value)), y.start + 14, words, "middle", "faint")
    canvas.text((x.start + x.end) / 2, y.start + 29, UNITS[name], "middle", "faint")
    for law in ("power", "fixed"):
        line = []
        for step in range(41):
            value = math.exp(x.low + (x.high - x.low) * step / 40)
            fitted = axis[law]["factor"] * value ** axis[law]["exponent"] + axis[law].get("fixed", 0.0)
            line.append((x(math.log(value)), min(max(y(math.log(fitted)), y.end - 8), y.start + 4)))
        canvas.path(line, f"{class_} curve" if law == axis["told"] else "curve even")
    for point in points:
        place, spread = x(math.log(point["value"])), point["seconds"]
        canvas.line(place, y(math.log(spread["p20"])), place, y(math.log(spread["p80"])), f"{class_} bar")
        canvas.marker(place, y(math.log(spread["p50"])), 0, f"{class_} dot", 3)
