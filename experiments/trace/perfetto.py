"""A time line for ui.perfetto.dev and chrome://tracing, in the Trace Event Format's JSON.

A method is a process, whose text begins at 0. Its steps are complete events (`X`) and hold their phases; what the tree
had and what was accepted are counters (`C`). The format: times are microseconds; events of one thread nest or come one
after the other. See "Trace Event Format", the Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import specdec
from specdec.experiments.records import write_text
from specdec.experiments.trace.record import Span, Trace, TracedStep

Event = dict[str, Any]
THREAD = 1


def write_perfetto(file: Path, traces: Sequence[Trace]) -> None:
    """Replace the file."""
    write_text(file, json.dumps(time_line(traces), allow_nan=False) + "\n")


def time_line(traces: Sequence[Trace]) -> dict[str, Any]:
    """The file's one object."""
    events = [event for process, trace in enumerate(traces, 1) for event in _events(process, trace)]
    about = {"made by": f"specdec {specdec.__version__}"}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _events(process: int, trace: Trace) -> Iterator[Event]:
    place = {"pid": process, "tid": THREAD}
    yield {"ph": "M", "name": "process_name", **place, "args": {"name": trace.method}}
    yield {"ph": "M", "name": "process_sort_index", **place, "args": {"sort_index": process}}
    yield {"ph": "M", "name": "thread_name", **place, "args": {"name": "steps"}}
    yield _span(place, "prefill", "phase", 0.0, trace.prefill, {"prompt": trace.prompt[-200:]})
    for number, step in enumerate(trace.steps, 1):
        begin, end = step.spans[0].begin, step.spans[-1].end
        accepted, own = trace.pieces[number]
        told = {"emitted": step.kept, "accepted": accepted, "own": own, "nodes": len(step.tokens)}
        yield _span(place, f"step {number}", "step", begin, end, told)
        for phase, args in _phases(step):
            yield _span(place, phase.phase, "phase", phase.begin, phase.end, args)
        for name, value in (("accepted tokens", len(step.drafted)), ("tree size", len(step.tokens))):
            yield {"ph": "C", "name": name, **place, "ts": _micros(begin), "args": {name: value}}


def _phases(step: TracedStep) -> Iterator[tuple[Span, Event]]:
    """The spans, with what is worth knowing of each."""
    nodes, depth = len(step.tokens), len(step.path)
    told: dict[str, Event] = {
        "verify": {"rows": nodes + len(step.rider_tokens), "riders": len(step.rider_tokens)},
        "accept": {"accepted": depth - 1, "own_target": step.own_target},
        "commit": {"tokens": depth},
    }
    parts: Iterator[Event] = iter(({"part": "propose", "nodes": nodes}, {"part": "observe"}))
    for span in step.spans:
        yield span, next(parts) if span.phase == "draft" else told[span.phase]


def _span(place: Event, name: str, category: str, begin: float, end: float, args: dict[str, Any]) -> Event:
    start = _micros(begin)
    return {"ph": "X", "name": name, "cat": category, **place, "ts": start, "dur": _micros(end) - start, "args": args}


def _micros(seconds: float) -> float:
    return round(seconds * 1e6, 3)
