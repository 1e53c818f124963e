"""How long readers wait for the next tokens: quantiles over all steps, where each has a time of its own."""

from __future__ import annotations

from pathlib import Path

from specdec.experiments.records import read_lines
from specdec.metrics import quantiles

DEFINITIONS = {
    "step_time": "Seconds of a step, pooled over all steps of all requests: the time between tokens, as those of "
    "a step come at once. Quantiles p20, p50, p80, p99; only where a request is served alone, and not on a GPU."
}


def step_times(file: Path) -> dict[str, dict[str, float]]:
    """By method, of those whose steps have times. `file` is steps.jsonl."""
    found: dict[str, list[float]] = {}
    for row in read_lines(file):
        if row["seconds"] is not None:
            found.setdefault(row["method"], []).append(row["seconds"])
    return {method: quantiles(seconds) for method, seconds in found.items()}
