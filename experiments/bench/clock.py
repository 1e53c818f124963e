"""Timing: methods by turns, quantiles at the end. On CUDA as replays of a captured graph, timed by events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

Call = Callable[[], object]
Turn = Callable[[], float]  # one sample: seconds per call


class Quantiles(NamedTuple):
    """Of samples."""

    p20: float
    p50: float
    p80: float


class Prepared(NamedTuple):
    """What is timed.

    Attributes:
        turn: takes a sample.
        captured: the host's time is not in it.
        outputs: what the captured calls return; every sample writes them anew. Empty where nothing is captured.
    """

    turn: Turn
    captured: bool
    outputs: Sequence[Any]


NOT_CAPTURED = "not captured in a graph: the host's time is in it"


def prepare(calls: Sequence[Call], device: torch.device) -> Prepared:
    """Warm up; on CUDA a graph of all calls, on the CPU the calls in rotation."""
    return device_turn(calls) if device.type == "cuda" else Prepared(host_turn(calls), True, [])


def quantiles(samples: Sequence[float]) -> Quantiles:
    """p20, p50 and p80 by linear interpolation.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("no samples to take quantiles of")
    ordered = sorted(samples)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return Quantiles(at(0.2), at(0.5), at(0.8))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Quantiles:
    """How many times as fast we are, from samples that were taken by turns."""
    return quantiles([b / a for a, b in zip(ours, theirs, strict=True)])


def by_turns(
    turns: Mapping[str, Turn], seconds: float, *, least: int = 5, most: int = 60, now: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Samples of every method, in rounds of one sample each, as many rounds as fit into `seconds`."""
    now = now or time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in turns}
    started, done = now(), 0
    while turns and done < most and (done < least or (now() - started) * (done + 1) / done < seconds):
        for name, turn in turns.items():
            samples[name].append(turn())
        done += 1
    return samples


def host_turn(calls: Sequence[Call], floor: float = 2e-3, clock: Callable[[], float] | None = None) -> Turn:
    """Samples on the CPU: the calls in rotation, as many as last `floor` seconds. Two calls are made beforehand.

    With one thread it is the thread's own time that is taken, in which other programs have no part.
    """
    clock = clock or (time.thread_time if torch.get_num_threads() == 1 else time.perf_counter)
    position = 0

    def run(count: int) -> float:
        nonlocal position
        started = clock()
        for _ in range(count):
            calls[position % len(calls)]()
            position += 1
        return (clock() - started) / count

    run(1)
    count = max(1, min(200, round(floor / max(run(1), 1e-6))))
    return lambda: run(count)


def device_turn(calls: Sequence[Call]) -> Prepared:
    """Samples on CUDA: all calls, one behind the other, in one graph, as far as they can be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    outputs: list[Any] = []
    try:
        with torch.cuda.graph(graph):
            outputs = [call() for call in calls]
        replay: Callable[[], object] = graph.replay
        captured = True
    except RuntimeError:  # it waits for the host, say
        torch.cuda.synchronize()
        captured = False
        outputs = []

        def replay() -> None:
            for call in calls:
                call()

    replay()

    def turn() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / len(calls)

    return Prepared(turn, captured, outputs)
