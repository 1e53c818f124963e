"""Requests through an engine, in flight or in static batches, in a closed loop or as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from specdec.arrivals import Arrival
from specdec.engine import Engine
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.serving_settings import ServingSettings
from specdec.turn import Turn

READ, DECODE = "read", "decode"
Visit = tuple[int, str, float, float]  # slot, READ or DECODE, from and until


@dataclass(slots=True)
class Outcome:
    """What came of it. All times are by `time.perf_counter`.

    Attributes:
        stats: counts and times, of every request in the order given.
        texts: new tokens of every request.
        began, ended: of the whole.
        due: when every request was to come: where nothing said, when its client was free, of which there are as many as
            slots (in flight that is when it was taken).
        visits: of every request, in order.
        pool: pages that were held, as shares: `mean` over time and `max`; and how many there are; None for a dense
            cache.
    """

    stats: DecodingStats
    texts: list[list[int]]
    began: float = 0.0
    ended: float = 0.0
    due: list[float] = field(default_factory=list)
    visits: list[list[Visit]] = field(default_factory=list)
    pool: dict[str, float] | None = None


class Watch:
    """Keeps who was in which slot, and how full the pool was."""

    def __init__(self, count: int):
        self.visits: list[list[Visit]] = [[] for _ in range(count)]
        self._now: dict[int, tuple[int, str, float]] = {}  # by request: slot, what, since
        self._area, self._most, self._pages = 0.0, 0, 0
        self._first, self._last, self._held = 0.0, 0.0, 0

    def __call__(self, turn: Turn) -> None:
        """See `generate_many`."""
        self._area += self._held * (turn.seconds - self._last)
        self._first, self._last = self._first or turn.seconds, turn.seconds
        self._held, self._pages = turn.held, turn.pages
        self._most = max(self._most, turn.held)
        running = {number: (slot, READ if reading else DECODE) for number, slot, reading in turn.running}
        for number in [n for n, (slot, what, _) in self._now.items() if running.get(n) != (slot, what)]:
            self._leave(number, turn.seconds)
        for number, place in running.items():
            if number not in self._now:
                self._now[number] = *place, turn.seconds

    def _leave(self, number: int, now: float) -> None:
        slot, what, since = self._now.pop(number)
        self.visits[number].append((slot, what, since, now))

    def finish(self, ends: Sequence[float], now: float) -> dict[str, float]:
        """Everybody has left, each at his end: the last visit goes no further. Returns how full the pool was."""
        self._area += self._held * (now - self._last)
        for number in list(self._now):
            self._leave(number, now)
        for visits, end in zip(self.visits, ends, strict=True):
            if visits:
                slot, what, since, until = visits[-1]
                visits[-1] = slot, what, since, max(min(until, end), since)
        spent = (now - self._first) or 1.0
        return {"mean": self._area / spent / self._pages, "max": self._most / self._pages, "pages": self._pages}


def in_flight(
    engine: Engine, requests: Sequence[Request], settings: ServingSettings, gaps: Sequence[float] | None = None
) -> Outcome:
    """Requests enter and leave at every step.

    Args:
        settings: slots and memory; their `watch` is set here.
        gaps: seconds from the beginning at which every request comes; None for as soon as there is a slot.

    Raises:
        ValueError: a request cannot be served, or what its error was.
    """
    watch = Watch(len(requests))
    outcome = Outcome(DecodingStats(), [[] for _ in requests])

    def coming() -> Iterator[Arrival]:
        outcome.began = time.perf_counter()  # buffers are there
        for number, request in enumerate(requests):
            while gaps is not None and time.perf_counter() < outcome.began + gaps[number]:
                yield None
            yield request, None

    for generation in engine.run_many(coming(), outcome.stats, replace(settings, watch=watch)):
        if generation.error is not None:
            raise ValueError(f"request {generation.index}: {generation.error}") from generation.error
        outcome.texts[generation.index] = generation.new_ids
    told = outcome.stats.requests
    outcome.ended = max(request.end for request in told)
    outcome.due = [request.start for request in told] if gaps is None else [outcome.began + gap for gap in gaps]
    outcome.pool = watch.finish([request.end for request in told], outcome.ended)
    outcome.visits = watch.visits
    return outcome


def in_batches(engine: Engine, requests: Sequence[Request], slots: int, gaps: Sequence[float] | None = None) -> Outcome:
    """Batches of at most `slots` requests, each to the end of its longest; then the next one, of all that have come.

    Without `gaps` every place of a batch is a client's, who sends the next request as soon as the last one has ended,
    and has to wait for the next batch.
    """
    outcome = Outcome(DecodingStats(), [[] for _ in requests], began=time.perf_counter())
    begins: list[float] = []
    while (first := len(begins)) < len(requests):
        count = slots
        if gaps is not None:
            time.sleep(max(outcome.began + gaps[first] - time.perf_counter(), 0.0))
            passed = time.perf_counter() - outcome.began
            count = min(max(sum(gap <= passed for gap in gaps) - first, 1), slots)
        batch = requests[first : first + count]
        begins += [time.perf_counter()] * len(batch)
        for generation, tokens in engine.run(batch, outcome.stats):
            outcome.texts[first + generation.index] += tokens
    told = outcome.stats.requests
    outcome.ended = max(request.end for request in told)
    free = [outcome.began] * slots + [request.end for request in told]  # a client's next one comes after its last one
    outcome.due = free[: len(told)] if gaps is None else [outcome.began + gap for gap in gaps]
    for number, request in enumerate(told):
        slot = number - begins.index(begins[number])
        outcome.visits.append([(slot, READ, begins[number], request.first), (slot, DECODE, request.first, request.end)])
    return outcome
