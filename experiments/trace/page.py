"""trace.html: a page to step through what was recorded. Readable offline, by a screen reader and in the dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import specdec
from specdec.experiments.records import write_text
from specdec.experiments.report import text
from specdec.experiments.report.page import FOLDER as REPORT
from specdec.experiments.report.svg import Canvas
from specdec.experiments.trace.layout import rows
from specdec.experiments.trace.record import Trace, TracedStep
from specdec.metrics import STEP_PHASES

FOLDER = Path(__file__).parent
STRIP_HEIGHT = 48.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A trace as the page has it: what the template writes, and the `data` that the script draws."""

    trace: Trace
    facts: str
    strip: Markup
    data: dict[str, Any]


def write_page(file: Path, traces: Sequence[Trace]) -> None:
    """Replace the file."""
    write_text(file, render(traces))


def render(traces: Sequence[Trace]) -> str:
    """The page. Texts of a run are escaped; its one script is known to it by its hash, and nothing is fetched."""
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    script = (FOLDER / "trace.js").read_text(encoding="utf-8")
    shown = [Shown(trace, _facts(trace), strip(trace), data(trace)) for trace in traces]
    drafting = [number for number, trace in enumerate(traces) if any(len(s.tokens) > 1 for s in trace.steps)]
    return environment.get_template("trace.html.j2").render(
        version=specdec.__version__,
        css=Markup(_read(REPORT / "report.css") + _read(FOLDER / "trace.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode(),
        shown=shown,
        begin=drafting[0] if drafting else 0,
        phases=STEP_PHASES,
    )


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def data(trace: Trace) -> dict[str, Any]:
    """What the script draws."""
    return {
        "method": trace.method,
        "slowest": max((sum(_times(step)) for step in trace.steps), default=0.0),
        "parts": list(dict.fromkeys(name for step in trace.steps for name in step.sources)),
        "steps": [_step(trace, number, step) for number, step in enumerate(trace.steps, 1)],
    }


def _step(trace: Trace, number: int, step: TracedStep) -> dict[str, Any]:
    own = len(step.tokens)  # the target's own token is drawn as one more node, behind the accepted ones
    parents = [*step.parents, step.path[-1]]
    return {
        "words": [trace.words[token] for token in (*step.tokens, step.own)],
        "parents": parents,
        "rows": rows(parents, first=own),
        "draft": [*map(_rounded, step.draft), None],
        "target": [*map(_rounded, step.target), _rounded(step.own_target)],
        "path": step.path,
        "kept": step.kept,
        "sources": list(step.sources.values()),
        "riders": {
            "words": [trace.words[token] for token in step.rider_tokens],
            "parents": step.rider_parents,
            "rows": rows(step.rider_parents),
        },
        "times": [round(seconds, 7) for seconds in _times(step)],
        "said": _said(trace, number, step),
    }


def _rounded(probability: float | None) -> float | None:
    return None if probability is None else float(f"{probability:.3g}")


def _times(step: TracedStep) -> list[float]:
    return [step.seconds(phase) for phase in STEP_PHASES]


def _said(trace: Trace, number: int, step: TracedStep) -> str:
    """The step in a sentence."""
    drafted = len(step.tokens) - 1
    words = "".join(trace.words[step.tokens[j]] for j in step.drafted)
    count = len(step.drafted)
    if not drafted:
        accepted = "nothing was drafted"
    elif count:
        accepted = f"{count} of {drafted} drafted tokens accepted, “{words}”"
    else:
        accepted = f"none of {drafted} drafted tokens accepted"
    added = f"the target added “{trace.words[step.own]}”" if step.kept == len(step.path) else "the text ended there"
    return f"Step {number} of {len(trace.steps)}: {accepted}; {added}."


def _facts(trace: Trace) -> str:
    emitted, steps = sum(step.kept for step in trace.steps), len(trace.steps)
    mean = f", {emitted / steps:.2f} a step" if steps else ""
    what = f"question {trace.question_id}, {text.sampling(trace.sampling)}"
    return f"{what}: {emitted + 1} tokens, the prefill's one and {emitted} in {steps} steps{mean}"


def strip(trace: Trace) -> Markup:
    """A bar for every step: what was accepted, and the target's own token on top."""
    most = max((step.kept for step in trace.steps), default=1)
    unit = STRIP_HEIGHT / max(most, 4)
    canvas = Canvas(10.0 * max(len(trace.steps), 1), STRIP_HEIGHT)
    for number, step in enumerate(trace.steps):
        left, accepted = 10.0 * number + 1, unit * len(step.drafted)
        height = unit * step.kept
        canvas.add("rect", x=left, y=STRIP_HEIGHT - accepted, width=8.0, height=accepted, class_="accepted")
        canvas.add("rect", x=left, y=STRIP_HEIGHT - height, width=8.0, height=height - accepted, class_="own")
    box = f"0 0 {canvas.width:.0f} {canvas.height:.0f}"
    return Markup('<svg class="strip" viewBox="{}" preserveAspectRatio="none" aria-hidden="true">{}</svg>').format(
        box, canvas.content
    )
