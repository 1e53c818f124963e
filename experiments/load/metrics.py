"""What is told of a cell, each defined once. All are made of the rows of its requests (see experiments/README.md) and
of how long it took, all rounds together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specdec.experiments.records import Row
from specdec.request_stats import ratio

Quantiles = dict[str, float]
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def ttft(rows: Sequence[Row]) -> Quantiles:
    """Seconds to a request's first token: 50th, 90th and 99th percentile over requests. Closed loop: from when its
    client sent it, which is as soon as that client's last one has ended: in flight there is room at once, in static
    batching it waits for its batch. Open loop: from when it was to come, whether or not anybody looked."""
    return quantiles([row["ttft"] for row in rows])


def tpot(rows: Sequence[Row]) -> Quantiles:
    """Seconds per output token after the first: 50th, 90th and 99th percentile over requests that have a second one."""
    return quantiles([row["tpot"] for row in rows if row["new_tokens"] > 1])


def queue(rows: Sequence[Row]) -> Quantiles:
    """Seconds that a request waits, of its time to first token: until it has a slot and pages in flight, and until its
    batch begins in static batching: 50th, 90th and 99th percentile."""
    return quantiles([row["queue"] for row in rows])


def throughput(rows: Sequence[Row], seconds: float) -> float:
    """Tokens per second: new tokens of all requests / seconds from the beginning to the last token. So the end, where
    fewer and fewer are in flight, counts, too."""
    return ratio(sum(row["new_tokens"] for row in rows), seconds)


def request_rate(rows: Sequence[Row], seconds: float) -> float:
    """Requests per second: those served / seconds from the beginning to the last token."""
    return ratio(len(rows), seconds)


def goodput(rows: Sequence[Row], seconds: float, bounds: Mapping[str, float]) -> float:
    """Requests per second that were fast enough: both their time to first token and their time per output token, if
    they have a second one, were within the bounds."""
    in_time = [row for row in rows if row["ttft"] <= bounds["ttft"]]
    return ratio(sum(row["new_tokens"] < 2 or row["tpot"] <= bounds["tpot"] for row in in_time), seconds)


def mean_accepted_length(rows: Sequence[Row]) -> float:
    """Sum of emitted tokens / sum of steps, the target's own token of every step included, over all requests."""
    return ratio(sum(sum(row["accept_lengths"]) for row in rows), sum(row["steps"] for row in rows))


def slot_use(rows: Sequence[Row], seconds: float, slots: int) -> float:
    """Share of the slots that have a request, over time: sum of requests' seconds in a slot / (slots x seconds)."""
    return ratio(sum(end - start for row in rows for _, _, start, end in row["visits"]), slots * seconds)


def pool_use(cells: Sequence[Row]) -> dict[str, float]:
    """Share of the pool's pages that requests hold, in flight: the mean over time, and the most at any step."""
    told = [(cell["pool"], cell["seconds"]) for cell in cells if cell["pool"] is not None]
    mean = ratio(sum(pool["mean"] * seconds for pool, seconds in told), sum(seconds for _, seconds in told))
    return {"mean": mean, "max": max((pool["max"] for pool, _ in told), default=float("nan"))}


def preemptions(rows: Sequence[Row]) -> int:
    """How often a request lost its pages to another one, and was read again."""
    return sum(row["preemptions"] for row in rows)


def all_of(rows: Sequence[Row], cells: Sequence[Row], bounds: Mapping[str, float]) -> dict[str, Any]:
    """Every metric by its name, of the requests of a cell and its rounds."""
    seconds, slots = sum(cell["seconds"] for cell in cells), cells[0]["slots"]
    return {
        "ttft": ttft(rows),
        "tpot": tpot(rows),
        "queue": queue(rows),
        "throughput": throughput(rows, seconds),
        "request_rate": request_rate(rows, seconds),
        "goodput": goodput(rows, seconds, bounds),
        "mean_accepted_length": mean_accepted_length(rows),
        "slot_use": slot_use(rows, seconds, slots),
        "pool_use": pool_use(cells),
        "preemptions": preemptions(rows),
    }


def definitions() -> dict[str, str]:
    """Every metric's name and what it means: the docstring of what computes it."""
    told = (ttft, tpot, queue, throughput, request_rate, goodput, mean_accepted_length, slot_use, pool_use, preemptions)
    return {function.__name__: " ".join((function.__doc__ or "").split()) for function in told}


def quantiles(values: Sequence[float]) -> Quantiles:
    """The 50th, 90th and 99th percentile, linearly interpolated; NaN of nothing."""
    found = np.quantile(values, list(SHARES.values())) if values else [float("nan")] * len(SHARES)
    return {name: float(value) for name, value in zip(SHARES, found, strict=True)}
