"""Traces of a run: the first prompt of its questions, by each of its methods, with engines that have seen nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specdec.decode import decode
from specdec.engine import Engine
from specdec.experiments.config import RunConfig
from specdec.experiments.conversation import encode
from specdec.experiments.data import Question
from specdec.experiments.measure import tell_reference
from specdec.experiments.records import Records
from specdec.experiments.report.examples import split_text
from specdec.experiments.trace.page import write_page
from specdec.experiments.trace.perfetto import write_perfetto
from specdec.experiments.trace.record import Trace, TracedStep, name_tokens, read_traces, write_traces
from specdec.experiments.trace.watch import WatchedStep
from specdec.experiments.trace.words import Words
from specdec.experiments.workbench import Bench
from specdec.inputs import eos_ids
from specdec.metrics import DecodingStats
from specdec.request import Request

RECORD, PAGE, TIME_LINE = "trace.jsonl", "trace.html", "trace.perfetto.json"
PROMPT_CHARACTERS = 1500  # of a prompt's end


def trace_run(config: RunConfig, bench: Bench, question: Question, records: Records, directory: Path) -> list[Path]:
    """Trace every method on the first turn of a question and write what `config.trace` names. The measurement neither
    changes a trace nor is changed by it.

    Returns:
        The files for a reader.
    """
    tokens = config.measure.max_new_tokens
    ids, _ = encode(bench.tokenizer, question.turns, [], bench.room(tokens))
    traces = []
    for method in (m for m in config.methods if m.backend is None):
        engine = bench.make(method)
        if method.baseline is not None:
            answer = records.finished[method.baseline, question.question_id, 0, 0]["token_ids"]
            tell_reference(engine.drafter, ids + answer)
        request = Request(ids, tokens, method.sampling, eos_ids(bench.model))
        traces.append(trace_text(engine, request, bench.tokenizer, method.name, question.question_id))
    write_traces(directory / RECORD, traces)
    return render(directory, config.trace)


def render(directory: Path, kinds: Sequence[str]) -> list[Path]:
    """Write what was recorded in `directory` for a reader, as each of `kinds`.

    Raises:
        ValueError: nothing was recorded there.
    """
    traces = read_traces(directory / RECORD)
    writers = {"html": (write_page, directory / PAGE), "perfetto": (write_perfetto, directory / TIME_LINE)}
    chosen = [writers[kind] for kind in kinds]
    for write, file in chosen:
        write(file, traces)
    return [file for _, file in chosen]


def trace_text(engine: Engine, request: Request, tokenizer: Any, method: str, question_id: int | str) -> Trace:
    """Serve a request alone, watched."""
    step = WatchedStep(engine, len(request.prompt) + request.max_new_tokens)
    text: list[int] = []
    steps: list[TracedStep] = []
    prefill = 0.0
    for _, new in decode(step, [request], DecodingStats()):
        if text:
            steps.append(step.steps[len(steps)])  # on a GPU the next one has been run already
            steps[-1].kept = len(new)
        else:
            prefill = step.clock.now()
        text += new
    parts = [(len(traced.drafted), traced.kept) for traced in steps]
    pieces = split_text(text, parts, tokenizer)
    prompt = tokenizer.decode(request.prompt)
    return Trace(
        method=method,
        question_id=question_id,
        sampling=asdict(request.sampling),
        prompt=prompt[-PROMPT_CHARACTERS:],
        prefill=prefill,
        first=text[0],
        steps=steps,
        words=name_tokens(steps, Words(tokenizer).of),
        pieces=[(piece.drafted, piece.own) for piece in pieces],
    )
