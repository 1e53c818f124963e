"""The measurement: every question through every method in turn, the baseline first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

from specdec.core import forget
from specdec.experiments import lossless
from specdec.experiments.config import Measure
from specdec.experiments.context import to_length
from specdec.experiments.conversation import encode
from specdec.experiments.data import Question, in_groups
from specdec.experiments.engines.counts import Step
from specdec.experiments.engines.counts import count as count_answers
from specdec.experiments.machine import peak_memory, reset_peak_memory
from specdec.experiments.methods import Method
from specdec.experiments.records import Key, Records, Row
from specdec.experiments.summary import without_nan
from specdec.experiments.workbench import Bench
from specdec.inputs import eos_ids
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.request_stats import RequestStats
from specdec.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests that are served together: a method, some questions, a turn, a repeat.

    `chunk` is the first of the questions that all methods serve before the next ones come.
    """

    method: Method
    questions: tuple[Question, ...]
    turn: int
    repeat: int
    chunk: int = 0

    def key(self, question: Question) -> Key:
        """As `records.key_of` its row."""
        return self.method.name, question.question_id, self.turn, self.repeat

    @property
    def keys(self) -> list[Key]:
        """Of all its requests."""
        return [self.key(question) for question in self.questions]

    @property
    def sampling(self) -> SamplingParams:
        """The method's settings; every repeat has its own seed."""
        return replace(self.method.sampling, seed=self.method.sampling.seed + self.repeat)


def plan(methods: Sequence[Method], questions: Sequence[Question], measure: Measure) -> Iterator[Cell]:
    """The order of requests: methods side by side, so that whatever slows the machine down slows all of them down.

    Those of one batch size are; the sizes take turns, as many questions each as the largest serves at once. Groups are
    of one category where they can be, so that its times are its own.
    """
    sizes = dict.fromkeys(method.batch for method in methods)
    ordered, most = in_groups(questions, sizes), max(sizes)
    for repeat in range(measure.repeats):
        for chunk, size in product(range(0, len(ordered), most), sizes):
            beside = [method for method in methods if method.batch == size]
            asked = ordered[chunk : chunk + most]
            for group in (tuple(asked[i : i + size]) for i in range(0, len(asked), size)):
                for turn, method in product(range(max(len(question.turns) for question in group)), beside):
                    yield Cell(method, tuple(q for q in group if len(q.turns) > turn), turn, repeat, chunk)


def warm_up(bench: Bench, questions: Sequence[Question], tokens: int) -> dict[str, float]:
    """A short answer by every method, as often together as it serves questions, so that nothing is measured the first
    time it runs. Returns what each took, in seconds."""
    spent: dict[str, float] = {}
    if tokens:
        whole, _ = encode(bench.tokenizer, questions[0].turns, [], bench.room(tokens))
        plain: dict[str | None, list[int]] = {}
        for method in bench.methods:
            ids = _in_context(whole, bench, method, questions[0], questions)
            if method.backend is None:
                tell_reference(bench.engines[method.name].drafter, ids + plain.get(method.baseline, []))
            prompts = [ids] * min(method.batch, len(questions))
            began = time.perf_counter()
            plain[method.name] = serve(bench, method.name, prompts, tokens, method.sampling).texts[0]
            spent[method.name] = time.perf_counter() - began
    return spent


def tell_reference(drafter: Any, *texts: list[int]) -> None:
    """Synthetic drafters, also those within others, are right by the baseline's texts."""
    if getattr(drafter, "synthetic", False):
        drafter.references[:] = texts
    for part in getattr(drafter, "drafters", ()):
        tell_reference(part, *texts)


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
    at: tuple[int, int] | None = None
    for cell in plan(bench.methods, questions, settings):
        if at is None or at[1] != cell.repeat:  # what came before, warming up too, helps none of the repeats
            for engine in bench.engines.values():
                forget(engine.drafter)
        here = (cell.chunk, cell.repeat)
        if at not in (None, here) and settings.time_limit and time.perf_counter() - began > settings.time_limit:
            return
        at = here
        if not all(key in records.finished for key in cell.keys):
            for row, steps in run_cell(bench, cell, records, settings.max_new_tokens, questions):
                records.append(without_nan(row), without_nan(steps) if settings.steps else [])
        for key in cell.keys:
            tell(cell, records.finished[key])


def run_cell(
    bench: Bench, cell: Cell, records: Records, max_new_tokens: int, questions: Sequence[Question]
) -> list[tuple[Row, list[Row]]]:
    """Serve the requests and compare each with its baseline's: for each its row, and those of its steps.

    What was spent on all of them together is shared out evenly.

    Args:
        questions: all of the run, whose texts fill a context.
    """
    asked = [_prompt(bench, cell, q, records, max_new_tokens, questions) for q in cell.questions]
    prompts, cuts = zip(*asked, strict=True)
    baseline, count = cell.method.baseline, len(prompts)
    expected = [records.finished[baseline, *key[1:]]["token_ids"] if baseline else [] for key in cell.keys]
    if baseline is not None and cell.method.backend is None:
        texts = [ids + text for ids, text in zip(prompts, expected, strict=True)]
        tell_reference(bench.engines[cell.method.name].drafter, *texts)
    served = serve(bench, cell.method.name, prompts, max_new_tokens, cell.sampling)
    phases = {phase: seconds / count for phase, seconds in served.stats.phases.items()}
    timed = bench.device.type != "cuda" and count == 1
    result = []
    for number, question in enumerate(cell.questions):
        request, tokens = served.stats.requests[number], served.texts[number]
        identity: Row = {
            "question_id": question.question_id,
            "category": question.category,
            "method": cell.method.name,
            "repeat": cell.repeat,
            "turn": cell.turn,
        }
        row = identity | {
            "together": [q.question_id for q in cell.questions],
            "prompt_tokens": request.prompt_tokens,
            "cut_tokens": cuts[number],
            "new_tokens": request.new_tokens,
            "first_tokens": request.first_tokens,
            "steps": request.steps,
            "forwards": served.stats.forwards / count,
            "accept_lengths": request.accept_lengths,
            "nodes": request.nodes,
            "riders": request.riders,
            "proposed_depth": request.proposed_depth,
            "accepted": request.accepted,
            "offered_by_depth": request.offered_by_depth,
            "accepted_by_depth": request.accepted_by_depth,
            "children": request.children,
            "ranks": request.ranks,
            "ttft": request.ttft,
            "tpot": request.tpot,
            "seconds": sum(phases.values()),
            "phases": phases,
            "peak_memory": served.peak_memory,
            "text": bench.tokenizer.decode(tokens, skip_special_tokens=True),
            "token_ids": tokens,
            "check": _check(bench, cell, prompts[number], expected[number], tokens),
        }
        named = {k: v for k, v in identity.items() if k != "category"}
        result.append((row, [named | step for step in _step_rows(served.steps[number], request, timed)]))
    return result


def _prompt(
    bench: Bench,
    cell: Cell,
    question: Question,
    records: Records,
    max_new_tokens: int,
    questions: Sequence[Question],
) -> tuple[list[int], int]:
    """A question with the turns before it, as the baseline answered them; and how many tokens had to be cut off."""
    reference = cell.method.baseline or cell.method.name
    earlier = [(reference, question.question_id, turn, cell.repeat) for turn in range(cell.turn)]
    answers = [records.finished[key]["text"] for key in earlier]
    ids, cut = encode(bench.tokenizer, question.turns, answers, bench.room(max_new_tokens))
    if cell.method.place is None or cell.method.place.context is None:
        return ids, cut
    return _in_context(ids, bench, cell.method, question, questions), 0


def _in_context(
    ids: list[int], bench: Bench, method: Method, question: Question, questions: Sequence[Question]
) -> list[int]:
    """A prompt as long as the method's cell wants it."""
    length = method.place.context if method.place else None
    return ids if length is None else to_length(ids, length, bench.tokenizer, question, questions)


def _check(bench: Bench, cell: Cell, ids: list[int], expected: list[int], tokens: list[int]) -> Row | None:
    method = cell.method
    if method.baseline is None:
        return None
    check = lossless.Check(comparable=False)
    ours = bench.engines.get(method.name)
    if method.sampling.temperature == 0 if ours is None else lossless.comparable(ours.rule, method.sampling):
        check = lossless.compare(bench.engines[method.baseline].target, ids, expected, tokens, cell.sampling)
    return check_row(bench, check)


def check_row(bench: Bench, check: lossless.Check) -> Row:
    """A check for a file, with what its tokens say."""
    pieces = [bench.tokenizer.decode([token]) for token in check.tokens] if check.tokens else None
    return {**check.as_row(), "pieces": pieces}


@dataclass(frozen=True, slots=True)
class Served:
    """What came of requests that were served together.

    Attributes:
        texts: new tokens of each.
        stats: counts and times.
        steps: of each, what every step had come to; the first entry is the prefill.
        peak_memory: bytes; None if it is another process's.
    """

    texts: list[list[int]]
    stats: DecodingStats
    steps: list[list[Step]]
    peak_memory: int | None


def serve(
    bench: Bench, name: str, prompts: Sequence[list[int]], max_new_tokens: int, sampling: SamplingParams
) -> Served:
    """Some requests through one method, all at once."""
    if (other := bench.others.get(name)) is not None:
        reset_peak_memory(bench.device)
        answers, forwards = other.serve(prompts, max_new_tokens, sampling, eos_ids(bench.model))
        stats, steps = count_answers(prompts, answers, forwards)
        memory = None if other.own_memory else peak_memory(bench.device)
        return Served([[t for tokens in a.passes for t in tokens] for a in answers], stats, steps, memory)
    served = Served([[] for _ in prompts], DecodingStats(), [[] for _ in prompts], 0)
    reset_peak_memory(bench.device)
    requests = [Request(ids, max_new_tokens, sampling, eos_ids(bench.model)) for ids in prompts]
    for generation, new in bench.engines[name].run(requests, served.stats):
        served.texts[generation.index] += new
        so_far = (len(new), generation.stats.nodes, dict(served.stats.phases))
        served.steps[generation.index].append(so_far)
    return replace(served, peak_memory=peak_memory(bench.device))


def _step_rows(steps: list[Step], request: RequestStats, timed: bool) -> list[dict[str, Any]]:
    """Differences of running totals; the first entry is the prefill, which is no step."""
    rows = []
    for number, (before, (emitted, nodes, phases)) in enumerate(pairwise(steps), 1):
        spent = {phase: round(s - before[2][phase], 7) for phase, s in phases.items() if phase != "prefill"}
        rows.append(
            {
                "step": number,
                "emitted": emitted,
                "nodes": nodes - before[1],
                "children": request.children[number - 1] if request.children else None,
                "ranks": request.ranks[number - 1] if request.ranks else None,
                "seconds": round(sum(spent.values()), 7) if timed else None,
                "phases": spent if timed else None,
            }
        )
    return rows
