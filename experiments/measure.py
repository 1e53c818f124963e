"""The measurement: every question through every method in turn, the baseline first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from specdec.experiments import lossless
from specdec.experiments.config import Measure
from specdec.experiments.conversation import encode
from specdec.experiments.data import Question
from specdec.experiments.machine import peak_memory, reset_peak_memory
from specdec.experiments.methods import Method
from specdec.experiments.records import Key, Records, Row
from specdec.experiments.workbench import Bench
from specdec.inputs import eos_ids
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams

Step = tuple[int, int, dict[str, float]]  # emitted tokens, draft nodes so far, seconds by phase so far


@dataclass(frozen=True, slots=True)
class Cell:
    """One request: a method, a question, a turn, a repeat."""

    method: Method
    question: Question
    turn: int
    repeat: int

    @property
    def key(self) -> Key:
        """As `records.key_of` its row."""
        return self.method.name, self.question.question_id, self.turn, self.repeat

    @property
    def sampling(self) -> SamplingParams:
        """The method's settings; every repeat has its own seed."""
        return replace(self.method.sampling, seed=self.method.sampling.seed + self.repeat)


def plan(methods: Sequence[Method], questions: Sequence[Question], repeats: int) -> Iterator[Cell]:
    """The order of requests: methods side by side, so that whatever slows the machine down slows all of them down."""
    for repeat in range(repeats):
        for question in questions:
            for turn in range(len(question.turns)):
                for method in methods:
                    yield Cell(method, question, turn, repeat)


def warm_up(bench: Bench, question: Question, tokens: int) -> None:
    """A short answer by every method, so that nothing is measured the first time it runs."""
    if tokens:
        ids, _ = encode(bench.tokenizer, question.turns, [], bench.room(tokens))
        plain: dict[str | None, list[int]] = {}
        for method in bench.methods:
            tell_reference(bench.engines[method.name].drafter, ids + plain.get(method.baseline, []))
            plain[method.name] = serve(bench, method.name, ids, tokens, method.sampling)[0]


def tell_reference(drafter: Any, text: list[int]) -> None:
    """Synthetic drafters, also those within others, are right by the baseline's text."""
    if getattr(drafter, "synthetic", False):
        drafter.references[:] = [text]
    for part in getattr(drafter, "drafters", ()):
        tell_reference(part, text)


def measure(
    bench: Bench,
    questions: Sequence[Question],
    settings: Measure,
    records: Records,
    tell: Callable[[Cell, Row], None],
) -> None:
    """Serve every request that `records` does not hold yet, in the order of `plan`, until the time limit.

    Args:
        tell: called with every request and its row, those of an earlier start included.
    """
    began = time.perf_counter()
    at: object = None
    for cell in plan(bench.methods, questions, settings.repeats):
        here = (cell.question.question_id, cell.repeat)
        if at not in (None, here) and settings.time_limit and time.perf_counter() - began > settings.time_limit:
            return
        at = here
        if cell.key not in records.finished:
            row, steps = run_cell(bench, cell, records, settings.max_new_tokens)
            records.append(row, steps if settings.steps else [])
        tell(cell, records.finished[cell.key])


def run_cell(bench: Bench, cell: Cell, records: Records, max_new_tokens: int) -> tuple[Row, list[Row]]:
    """Serve one request and compare it with its baseline's: its row, and those of its steps."""
    method = cell.method
    reference = method.baseline or method.name
    answers = [records.finished[reference, cell.key[1], turn, cell.repeat]["text"] for turn in range(cell.turn)]
    ids, cut = encode(bench.tokenizer, cell.question.turns, answers, bench.room(max_new_tokens))
    if method.baseline is not None:
        reference_text = ids + records.finished[method.baseline, *cell.key[1:]]["token_ids"]
        tell_reference(bench.engines[method.name].drafter, reference_text)
    tokens, stats, steps, memory = serve(bench, method.name, ids, max_new_tokens, cell.sampling)
    request = stats.requests[0]
    identity: Row = {
        "question_id": cell.question.question_id,
        "category": cell.question.category,
        "method": method.name,
        "repeat": cell.repeat,
        "turn": cell.turn,
    }
    row = identity | {
        "prompt_tokens": request.prompt_tokens,
        "cut_tokens": cut,
        "new_tokens": request.new_tokens,
        "steps": request.steps,
        "forwards": stats.forwards,
        "accept_lengths": request.accept_lengths,
        "nodes": request.nodes,
        "riders": request.riders,
        "proposed_depth": request.proposed_depth,
        "accepted": request.accepted,
        "offered_by_depth": request.offered_by_depth,
        "accepted_by_depth": request.accepted_by_depth,
        "ttft": request.ttft,
        "tpot": request.tpot,
        "seconds": sum(stats.phases.values()),
        "phases": stats.phases,
        "peak_memory": memory,
        "text": bench.tokenizer.decode(tokens, skip_special_tokens=True),
        "token_ids": tokens,
        "check": None,
    }
    if method.baseline is not None:
        check = lossless.Check(comparable=False)
        if lossless.comparable(bench.engines[method.name].rule, method.sampling):
            expected = records.finished[method.baseline, *cell.key[1:]]["token_ids"]
            target = bench.engines[method.baseline].target
            check = lossless.compare(target, ids, expected, tokens, cell.sampling)
        row["check"] = check.as_row()
    named = {k: v for k, v in identity.items() if k != "category"}
    timed = bench.device.type != "cuda"
    return row, [named | step for step in _step_rows(steps, timed)]


def serve(
    bench: Bench, name: str, ids: list[int], max_new_tokens: int, sampling: SamplingParams
) -> tuple[list[int], DecodingStats, list[Step], int]:
    """One request through one method: new tokens, counts and times, what every step had come to, peak memory."""
    stats, tokens = DecodingStats(), list[int]()
    steps: list[Step] = []
    reset_peak_memory(bench.device)
    request = Request(ids, max_new_tokens, sampling, eos_ids(bench.model))
    for generation, new in bench.engines[name].run([request], stats):
        tokens += new
        steps.append((len(new), generation.stats.nodes, dict(stats.phases)))
    return tokens, stats, steps, peak_memory(bench.device)


def _step_rows(steps: list[Step], timed: bool) -> list[dict[str, Any]]:
    """Differences of running totals; the first entry is the prefill, which is no step."""
    rows = []
    for number, (before, (emitted, nodes, phases)) in enumerate(pairwise(steps), 1):
        spent = {phase: round(s - before[2][phase], 7) for phase, s in phases.items() if phase != "prefill"}
        rows.append(
            {
                "step": number,
                "emitted": emitted,
                "nodes": nodes - before[1],
                "seconds": round(sum(spent.values()), 7) if timed else None,
                "phases": spent if timed else None,
            }
        )
    return rows
