"""The requests of a run, the same for every cell: prompts, how much each writes, and when they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdec.experiments.conversation import encode
from specdec.experiments.data import Question
from specdec.experiments.load.settings import Settings
from specdec.experiments.workbench import Bench
from specdec.inputs import eos_ids
from specdec.request import Request
from specdec.sampling import SamplingParams

LENGTHS, GAPS = 1, 2  # streams of the run's seed


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and where it is from; `cut`: tokens taken off the prompt's left to fit the model."""

    question: Question
    request: Request
    cut: int


def make_requests(
    bench: Bench,
    questions: Sequence[Question],
    settings: Settings,
    max_new_tokens: int,
    sampling: SamplingParams,
    seed: int,
) -> list[Asked]:
    """As many as the largest cell serves; smaller ones serve the first of them. Prompts are the questions' first turns,
    and come again where there are too few.

    Args:
        max_new_tokens: of every request, where `settings.output_tokens` says nothing.
        sampling: of every request.
        seed: of the lengths.
    """
    lengths = output_lengths(settings, max_new_tokens, seed)
    room = bench.room(max(lengths))
    ends = frozenset[int]() if settings.ignore_end else eos_ids(bench.model)
    prompts = [encode(bench.tokenizer, question.turns, [], room) for question in questions[: len(lengths)]]
    found = []
    for number, length in enumerate(lengths):
        ids, cut = prompts[number % len(prompts)]
        found.append(Asked(questions[number % len(prompts)], Request(ids, length, sampling, ends), cut))
    return found


def output_lengths(settings: Settings, max_new_tokens: int, seed: int) -> list[int]:
    """New tokens of every request: drawn evenly from `settings.output_tokens`, both ends included."""
    if settings.output_tokens is None:
        return [max_new_tokens] * settings.most
    low, high = settings.output_tokens
    drawn: list[int] = np.random.default_rng([seed, LENGTHS]).integers(low, high + 1, settings.most).tolist()
    return drawn


def arrival_times(count: int, rate: float, seed: int, round_: int) -> list[float]:
    """Seconds from the beginning, of a Poisson process of `rate` a second: exponential gaps, the first one included.

    Every rate has the same gaps in units of its mean, and every round others.
    """
    gaps = np.random.default_rng([seed, GAPS, round_]).exponential(1 / rate, count)
    times: list[float] = np.cumsum(gaps).tolist()
    return times
