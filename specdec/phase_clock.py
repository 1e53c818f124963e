"""Where the time goes: seconds of every phase of a step, on a GPU from events."""

from __future__ import annotations

import time

import torch

from specdec.metrics import DecodingStats

MOST_EVENTS = 4096  # of a clock, before it waits for them


class PhaseClock:
    """Adds the time since the last lap to a phase. On a GPU it records events and reads them when asked."""

    def __init__(self, stats: DecodingStats, device: torch.device):
        self._stats = stats
        self._cuda = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._last = time.perf_counter()
        self.lap("host")

    def lap(self, phase: str) -> None:
        """What happened since the last lap was `phase`."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((phase, event))
            if len(self._events) > MOST_EVENTS:
                self.finish()
            return
        now = time.perf_counter()
        self._stats.phases[phase] += now - self._last
        self._last = now

    def skip(self) -> None:
        """What happened since the last lap was not ours (a consumer of a stream)."""
        if self._cuda:
            self.lap("")
        self._last = time.perf_counter()

    def finish(self) -> None:
        """Settle events into seconds."""
        if not self._events:
            return
        torch.cuda.synchronize()
        for (_, before), (phase, event) in zip(self._events, self._events[1:], strict=False):
            if phase:  # else skipped
                self._stats.phases[phase] += before.elapsed_time(event) / 1000
        del self._events[:-1]  # where the next phase begins
