"""What a run of `generate_many` looks like when a step begins."""

from __future__ import annotations

from typing import NamedTuple


class Turn(NamedTuple):
    """Requests have entered, and the step has not begun.

    Attributes:
        seconds: by `time.perf_counter`, as the times of `RequestStats` are.
        held, pages: of the pool's pages those that requests hold, and all.
        waiting: requests that have been taken from the iterable and have no slot.
        running: (number, slot, whether its prompt is still being read) of every request in a slot, in the order of
            admission.
    """

    seconds: float
    held: int
    pages: int
    waiting: int
    running: tuple[tuple[int, int, bool], ...]
