"""In-flight batching: requests enter and leave at every step, in pages that they are given as they need them.

A request's prompt but for its last token is read in chunks, beside the trees of the others; its last token is the root
of its first tree, so that its first token comes from an ordinary step. What goes wrong in one request (its logits
processor, its streamer, its criteria, NaN logits) ends that one alone.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError

import torch

from specdec.arrivals import Arrival, Arrivals, Served
from specdec.chunks import Chunk
from specdec.decode import Decoding, Emission, Flight
from specdec.metrics import DecodingStats
from specdec.request import Generation
from specdec.serving_settings import ServingSettings
from specdec.step import Step, on
from specdec.turn import Turn

IDLE = 0.001  # seconds to wait where nothing is served and nothing has come


class Serving(Decoding):
    """Requests that are read, decoded and ended.

    Args:
        run: the step, with pages.
        requests: what comes; looked at when there is a slot for it, at every turn once if it says None.
        settings: slots, rows, sharing, who is cancelled, and who watches.
        stats: where counts and times go; with `settings.keep` every request's own, too, else it grows by none.

    Attributes:
        scheduler: decides who is where.
        ended: requests that have ended, and have not been handed out.
        taken_over: the slots and their KV are another run's by now: nothing of them may be touched.
    """

    def __init__(self, run: Step, requests: Iterator[Arrival], settings: ServingSettings, stats: DecodingStats):
        super().__init__(run, stats)
        self.settings, self.scheduler = settings, settings.scheduler(run)
        self.arrivals = Arrivals(requests, self.scheduler, run.max_length, settings.cancelled)
        self.ended: list[Generation] = []
        self.taken_over = False
        self._jobs: dict[int, Served] = {}
        run.sampler.failures = {}

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.arrivals.more or self._jobs)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until something comes."""
        return self.arrivals.more and not self._jobs and not self.ended

    @torch.inference_mode()
    def turn(self) -> None:
        """Let requests leave and enter, then move all of them on by a step."""
        cancelled, watch = self.settings.cancelled, self.settings.watch
        for index in list(cancelled):
            if index in self._jobs:
                self._stop(self._jobs[index], CancelledError(f"request {index} was cancelled"))
            elif index < self.arrivals.count:  # it has ended
                cancelled.discard(index)
        self._reserve()
        self._admit()
        if watch is not None:
            watch(self._now())
        self._adopt()
        chunks = [
            (job, Chunk(job.slot, job.ids[job.length : job.length + count], job.length + count == job.goal))
            for job, count in self.scheduler.chunks()
        ]
        if self.serving:
            self.step([chunk for _, chunk in chunks])
        else:
            self.land()
            if chunks:
                self.clock.lap("host")
                self.run.read([chunk for _, chunk in chunks])
                self.clock.lap("prefill")
        for job, chunk in chunks:
            job.read(chunk)
            self.scheduler.committed(job, job.length + len(chunk.tokens))
        self._start([job for job, _ in chunks if not job.reading])
        self.clock.lap("host")

    def _now(self) -> Turn:
        scheduler = self.scheduler
        running = tuple((job.generation.index, job.slot, job.reading) for job in scheduler.running)
        return Turn(time.perf_counter(), scheduler.pool.held, scheduler.pool.pages, len(scheduler.waiting), running)

    @torch.inference_mode()
    def close(self) -> None:
        """Let go of everything, whatever was not finished."""
        for job in list(self._jobs.values()):
            self._stop(job, CancelledError("nobody waits for this request any more"))
        if not self.taken_over:
            self.run.sampler.failures = None

    def _reserve(self) -> None:
        """Pages for the next step. Who loses his own has to have all that was decided for him."""
        if self.scheduler.must_preempt():
            self.land()
        grown, preempted = self.scheduler.reserve()
        for job, slot in preempted:
            self._empty(slot)
            job.generation.stats.preemptions = job.preemptions
        for job, had in grown:
            self.run.target.cache.give(job.slot, job.pages[had:], had)

    def _adopt(self) -> None:
        """What others have read since they entered."""
        cache = self.run.target.cache
        for job, first in self.scheduler.adopt():
            pages = job.pages[first : len(job.keys)]
            cache.give(job.slot, pages, first)
            numbers = torch.tensor([job.slot, len(pages) * cache.page], device=cache.device)
            cache.append(numbers[:1], numbers[1:])
            job.generation.stats.shared_tokens = job.shared

    def _admit(self) -> None:
        """Those for whom there are a slot and pages; what is refused ends at once, but is handed out before there are
        more of such than slots: a queue may have no other."""
        ready: list[Served] = []
        while True:
            room = self.scheduler.free_slots and not self.scheduler.waiting
            came = bool(room) and len(self.ended) < self.settings.slots and self._arrive()
            if (job := self.scheduler.admit()) is not None:
                self._enter(job)
                ready += [] if job.reading else [job]
            elif not came:
                break
        self._start(ready)

    def _arrive(self) -> bool:
        """Take the next request from the queue; False if there is none, or none yet."""
        if (taken := self.arrivals.take()) is None:
            return False
        job, error = taken
        generation = job.generation
        self._jobs[generation.index] = job
        if self.settings.keep:
            self.stats.requests.append(generation.stats)
        if error is not None or generation.request.max_new_tokens == 0:
            self._end(generation, error)
        else:
            self.scheduler.waiting.append(job)
        return True

    def _enter(self, job: Served) -> None:
        """A job was given a slot and pages."""
        cache, stats = self.run.target.cache, job.generation.stats
        if not job.preemptions:
            stats.queued = time.perf_counter() - stats.start
        stats.shared_tokens = job.shared
        cache.release(job.slot)
        cache.give(job.slot, job.pages)
        if job.copy is not None:
            cache.copy_page(*job.copy)
        if job.length:
            numbers = torch.tensor([job.slot, job.length], device=cache.device)
            cache.append(numbers[:1], numbers[1:])
        job.hidden, job.logits = {layer: [] for layer in self.run.target.hidden_layers}, None

    def _start(self, jobs: Sequence[Served]) -> None:
        """Prompts have been read, all but their last tokens: their drafters begin."""
        if not jobs:
            return
        run, slots = self.run, [job.slot for job in jobs]
        self.clock.lap("host")
        layers = run.target.hidden_layers
        hidden = {layer: [job.hidden[layer] for job in jobs] for layer in layers}
        output = run.target.gathered([job.logits for job in jobs], hidden)
        run.drafter.start(run.state, slots, [job.ids[:-1] for job in jobs], output)
        for job in jobs:
            request = job.generation.request
            run.sampler.start(job.slot, request.sampling, job.ids, request.processors)
            self.slots[job.slot] = job.generation
            job.hidden, job.logits = {}, None
        run.roots[slots] = torch.tensor([job.ids[-1] for job in jobs], device=run.roots.device)
        self.clock.lap("prefill")

    def _collect(self, flight: Flight) -> list[Emission]:
        """See Decoding. What a request's processors raised ends it before its tokens, drawn without them, count."""
        failures, self.run.sampler.failures = self.run.sampler.failures or {}, {}
        for slot, error in failures.items():
            if (generation := self.slots[slot]) is not None:
                self._fail(slot, generation, error)
        return super()._collect(flight)

    def _emit(self, slot: int, generation: Generation, tokens: list[int]) -> Emission:
        before = len(generation.ids)
        try:
            kept = super()._emit(slot, generation, tokens)[1]
            if generation.request.streamer is not None and kept:
                generation.request.streamer.put(torch.tensor(kept))
        except Exception as error:
            self._fail(slot, generation, error)
            return generation, generation.ids[before:]
        self.scheduler.committed(self._jobs[generation.index], len(generation.ids) - 1)
        if generation.finished:
            self._end(generation, None)
        return generation, kept

    def _fail(self, slot: int, generation: Generation, error: Exception) -> None:
        """See Decoding: the others go on."""
        self._stop(self._jobs[generation.index], error)

    def _stop(self, job: Served, error: Exception) -> None:
        """Wherever it is."""
        if job.slot >= 0 and not self.taken_over:
            self._empty(job.slot)
        self._end(job.generation, error)

    def _end(self, generation: Generation, error: Exception | None) -> None:
        """It is not served any more; its slot has been emptied."""
        generation.finished, generation.error = True, error
        self.scheduler.leave(self._jobs.pop(generation.index))
        self.settings.cancelled.discard(generation.index)
        if generation.request.streamer is not None:
            try:
                generation.request.streamer.end()
            except Exception as raised:
                generation.error = error or raised
        self.ended.append(generation)


def serve(serving: Serving) -> Generator[Generation, None, None]:
    """Every request as it ends, until all have."""
    try:
        while not serving.done:
            with on(serving.run.roots.device):
                serving.turn()
            if serving.idle:
                time.sleep(IDLE)
            ended, serving.ended = serving.ended, []
            yield from ended
            serving.clock.skip()
        serving.clock.finish()
    finally:
        with on(serving.run.roots.device):
            serving.close()
