"""What of a run goes to its tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.experiments.leaderboard import by_category, numbers
from specdec.experiments.records import Row
from specdec.experiments.trackers.base import Guarded


def track_request(tracker: Guarded, row: Row, step: int) -> None:
    """A request's own numbers, and how its accepted lengths are spread, under its method's name."""
    values = {"tpot": row["tpot"], "ttft": row["ttft"], "seconds": row["seconds"], "new_tokens": row["new_tokens"]}
    if row["steps"]:
        values["mean_accepted_length"] = sum(row["accept_lengths"]) / row["steps"]
    tracker.log({f"{row['method']}/{name}": value for name, value in values.items()}, step)
    tracker.histogram(f"{row['method']}/accept_lengths", row["accept_lengths"], step)


def track_summary(tracker: Guarded, summary: Mapping[str, Any], rows: Sequence[Row], directory: Path) -> None:
    """The leaderboard, how accept lengths and times are spread, figures, the run's directory, and every metric."""
    tracker.table("leaderboard", *numbers(summary))
    tracker.table("by_category", *by_category(summary))
    for entry in summary["methods"]:
        own = [row for row in rows if row["method"] == entry["name"]]
        tracker.histogram(f"{entry['name']}/accept_lengths_all", [n for row in own for n in row["accept_lengths"]])
        tracker.histogram(f"{entry['name']}/tpot_all", [row["tpot"] for row in own])
    tracker.images(lambda: _draw(summary, directory / "figures"))
    tracker.artifact("run", directory)
    tracker.finish(flatten(summary))


def _draw(summary: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    from specdec.experiments.figures import draw  # matplotlib loads in a second

    return draw(summary, folder)


def flatten(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of every method as `method/metric`, parts as `method/metric/part`."""
    flat: dict[str, Any] = {}
    for entry in summary["methods"]:
        found = {**entry["metrics"], **({"speedup": entry["speedup"]} if entry["speedup"] else {})}
        for name, value in found.items():
            parts = (
                {f"/{part}": number for part, number in value.items()} if isinstance(value, Mapping) else {"": value}
            )
            flat |= {f"{entry['name']}/{name}{part}": v for part, v in parts.items() if isinstance(v, int | float)}
        flat[f"{entry['name']}/lossless"] = entry["lossless"]["verdict"]
    return flat
