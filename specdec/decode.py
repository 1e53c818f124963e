"""The loop: steps, what they emit, and requests entering and leaving slots."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.chunks import Chunk
from specdec.core import TargetOutput
from specdec.inspection import NAN_LOGITS
from specdec.metrics import DecodingStats
from specdec.phase_clock import PhaseClock
from specdec.request import Generation, Request
from specdec.request_stats import RequestStats
from specdec.step import Step, on, read_record
from specdec.tree.token_tree import TokenTree

Emission = tuple[Generation, list[int]]  # a request and its new tokens


@dataclass(frozen=True, slots=True)
class Flight:
    """A step's record on its way to the host, and who was in the slots when it began."""

    record: Tensor
    arrived: torch.cuda.Event | None
    generations: list[Generation | None]

    @staticmethod
    def begin(record: Tensor, generations: Sequence[Generation | None]) -> Flight:
        """Start the copy; on the CPU there is nothing to copy."""
        if record.device.type == "cpu":
            return Flight(record, None, list(generations))
        copied, arrived = record.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return Flight(copied, arrived, list(generations))

    def read(self) -> list[list[int]]:
        """Wait for it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        rows: list[list[int]] = self.record.tolist()
        return rows


class Decoding:
    """Requests in slots, and the step that moves all of them on.

    Args:
        run: the step.
        stats: where counts and times go.
        slots: how many of the step's slots are used; None for all.
        clock: that runs already; None for one that begins now.
    """

    def __init__(self, run: Step, stats: DecodingStats, slots: int | None = None, clock: PhaseClock | None = None):
        self.run, self.stats = run, stats
        self.slots: list[Generation | None] = [None] * (slots or run.capacity)
        self.flights: deque[Flight] = deque()
        self.clock = clock or PhaseClock(stats, run.target.device)

    @property
    def free(self) -> list[int]:
        """Slots without a request."""
        return [slot for slot, generation in enumerate(self.slots) if generation is None]

    @property
    def serving(self) -> list[int]:
        """Slots with a request."""
        return [slot for slot, generation in enumerate(self.slots) if generation is not None]

    @torch.inference_mode()
    def admit(self, slots: Sequence[int], generations: Sequence[Generation]) -> list[Emission]:
        """Prefill requests into free slots and emit each one's first token."""
        run = self.run
        self.clock.lap("host")
        started = time.perf_counter()
        prompts = [list(g.request.prompt) for g in generations]
        for slot, generation in zip(slots, generations, strict=True):
            generation.stats.start = started
            self.slots[slot] = generation
            run.sampler.start(slot, generation.request.sampling, generation.ids, generation.request.processors)
        output = run.target.prefill(slots, prompts)
        run.drafter.start(run.state, list(slots), prompts, output)
        first = self._first_tokens(slots, output)
        run.roots[list(slots)] = first
        run.sampler.commit(run.roots.clamp_min(0)[:, None])
        self.clock.lap("prefill")
        return [self._emit(s, g, [t]) for s, g, t in zip(slots, generations, first.tolist(), strict=True)]

    def _first_tokens(self, slots: Sequence[int], output: TargetOutput) -> Tensor:
        """The prompt's last token is a tree of one node: the rule that draws every other token draws the first too."""
        run = self.run
        index = torch.tensor(slots, device=run.roots.device)
        logits = output.logits.new_zeros(run.capacity, 1, output.logits.shape[-1])
        _refuse_nan(output.logits)
        tree = TokenTree.roots(torch.full_like(run.roots, -1).index_fill(0, index, 0))
        sampling = run.sampler.at(run.target.lengths - 1, 1, slots)
        return run.rule(tree, logits.index_copy(0, index, output.logits), sampling).next_token[index]

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk] = ()) -> list[Emission]:
        """One step of every slot, and of `chunks` beside them; returns what has been read: this step, or on a GPU the
        one before it."""
        self.clock.lap("host")
        record = self.run(self.serving, self.clock.lap, chunks)
        self.stats.forwards += 1
        self.flights.append(Flight.begin(record, self.slots))
        late = 0 if self.run.sampler.has_processors else steps_late(record.device)  # processors want the whole text
        emissions = self.land(late)
        self.clock.lap("host")
        return emissions

    def land(self, late: int = 0) -> list[Emission]:
        """Read all steps but the last `late` ones."""
        emissions = []
        while len(self.flights) > late:
            emissions += self._collect(self.flights.popleft())
        return emissions

    def _collect(self, flight: Flight) -> list[Emission]:
        """Put a step's tokens into the texts. Who had ended before it, which was not known yet, has no part in it."""
        emissions = []
        for slot, (row, generation) in enumerate(zip(flight.read(), flight.generations, strict=False)):
            if generation is None or generation.finished:
                continue
            step = read_record(row)
            if not step.tokens:
                raise ValueError("the drafter proposed a tree of size 0 for a running text; propose its root at least")
            if step.astray:
                raise ValueError("the drafter proposed a tree whose root is not `roots`, the last token of the text")
            if step.damaged:
                self._fail(slot, generation, ValueError(f"the target's {NAN_LOGITS}"))
                continue
            emission = self._emit(slot, generation, step.tokens)
            kept = len(emission[1])
            generation.stats.record(kept, step.size, step.height, step.children, step.ranks, step.riders)
            emissions.append(emission)
        return emissions

    def _fail(self, slot: int, generation: Generation, error: Exception) -> None:
        """One request cannot go on."""
        raise error

    def _emit(self, slot: int, generation: Generation, tokens: list[int]) -> Emission:
        now = time.perf_counter()
        generation.stats.first = generation.stats.first or now
        generation.stats.end = now
        kept = tokens[: generation.extend(tokens)]
        if generation.finished:
            self._empty(slot)
        return generation, kept

    def _empty(self, slot: int) -> None:
        """The request in `slot` leaves it."""
        self.slots[slot] = None
        self.run.roots[slot] = -1
        self.run.sampler.stop(slot)
        self.run.target.release(slot)


def steps_late(device: torch.device) -> int:
    """How many steps the host reads behind: a GPU begins the next step while the host reads the last one."""
    return 1 if device.type != "cpu" else 0


def decode(
    run: Step,
    requests: Iterable[Request],
    stats: DecodingStats | None = None,
    slots: int | None = None,
    clock: PhaseClock | None = None,
) -> Iterator[Emission]:
    """Serve `requests` in the slots of `run`, or `slots` of them; yields (request, its new tokens) after every step,
    until all have ended. `clock` writes into `stats`; None begins one.

    Raises:
        ValueError: the model's logits are NaN.
    """
    stats = stats if stats is not None else DecodingStats()
    decoding = Decoding(run, stats, slots, clock)
    queue = enumerate(requests)
    while True:
        entered = [_enter(stats, index, request) for _, (index, request) in zip(decoding.free, queue, strict=False)]
        yield from ((generation, []) for generation in entered if generation.finished)
        if entering := [generation for generation in entered if not generation.finished]:
            with on(run.roots.device):
                emissions = decoding.admit(decoding.free[: len(entering)], entering)
            yield from emissions
        if decoding.serving:
            with on(run.roots.device):
                emissions = decoding.step()
            yield from emissions
        elif not entered:
            break
        decoding.clock.skip()
    decoding.clock.finish()


def _enter(stats: DecodingStats, index: int, request: Request) -> Generation:
    generation = Generation(index, request, list(request.prompt), RequestStats(prompt_tokens=len(request.prompt)))
    generation.finished = request.max_new_tokens == 0
    stats.requests.append(generation.stats)
    return generation


def _refuse_nan(logits: Tensor) -> None:
    """`logits` `[..., V]` that a token was drawn from."""
    if logits.isnan().any():
        raise ValueError(f"the target's {NAN_LOGITS}")
