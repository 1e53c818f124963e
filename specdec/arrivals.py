"""Requests as they come: taken from the queue one by one, and refused where they cannot be served."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.chunks import Chunk
from specdec.request import Generation, Request
from specdec.request_stats import RequestStats
from specdec.scheduler import Job, Scheduler

Arrival = tuple[Request, Exception | None] | None  # what is wrong with it, if it is known; None: none has come yet


@dataclass(slots=True, eq=False, kw_only=True)
class Served(Job):
    """A request, and what its drafter is to know of its prompt: the target's hidden states by layer, piece by piece,
    `[n, H]` each, and its logits `[V]` after the last piece."""

    generation: Generation
    hidden: dict[int, list[Tensor]] = field(default_factory=dict)
    logits: Tensor | None = None

    def read(self, chunk: Chunk) -> None:
        """Keep what came of a chunk of its prompt: of a pass of which it was a small part, no more than that part."""
        for layer, rows in chunk.hidden.items():
            small = 2 * rows.nbytes < rows.untyped_storage().nbytes()
            self.hidden.setdefault(layer, []).append(rows.clone() if small and not chunk.last else rows)
        self.logits = chunk.logits


class Arrivals:
    """The queue before the slots.

    Args:
        requests: what comes; it may say None.
        scheduler: who could serve it.
        max_length: tokens of a prompt and its continuation, at most.
        cancelled: numbers of requests that are to end.

    Attributes:
        count: requests that were taken; the next one has this number.
        more: whether others may come.
    """

    def __init__(
        self, requests: Iterator[Arrival], scheduler: Scheduler[Served], max_length: int, cancelled: Collection[int]
    ):
        self._requests, self._scheduler, self._max_length, self._cancelled = requests, scheduler, max_length, cancelled
        self.count, self.more = 0, True

    def take(self) -> tuple[Served, Exception | None] | None:
        """The next request, whose streamer has had the prompt, and why it is refused, if it is; None if there is none,
        or none yet."""
        found = None
        if self.more:
            try:
                found = next(self._requests)
            except StopIteration:
                self.more = False
        if found is None:
            return None
        (request, error), index = found, self.count
        self.count += 1
        stats = RequestStats(prompt_tokens=len(request.prompt), first_tokens=0, start=time.perf_counter())
        generation = Generation(index, request, list(request.prompt), stats)
        job = Served(generation.ids, len(request.prompt) + request.max_new_tokens, generation=generation)
        error = error or self._refusal(job)
        if error is None and request.streamer is not None:
            try:
                request.streamer.put(torch.tensor(request.prompt))
            except Exception as raised:
                error = raised
        return job, error

    def _refusal(self, job: Served) -> Exception | None:
        index = job.generation.index
        if index in self._cancelled:
            return CancelledError(f"request {index} was cancelled")
        if job.most > self._max_length:
            return ValueError(
                f"prompt plus new tokens make {job.most} tokens, but this run was begun for {self._max_length}; "
                "give generate_many a larger max_length, shorten the prompt or lower max_new_tokens"
            )
        if not self._scheduler.fits(job):
            pool = self._scheduler.pool
            return ValueError(
                f"prompt plus new tokens make {job.most} tokens, which with room for drafts are more than all "
                f"{pool.pages} pages of {pool.size} tokens can hold; give generate_many more memory, shorten the "
                "prompt or lower max_new_tokens"
            )
        return None
