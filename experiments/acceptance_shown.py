"""Acceptance in the terminal: by depth, rank, position and temperature, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from specdec.experiments.display import folded

MOST = 5  # depths, ranks and stretches that are shown


def says_more(summary: Mapping[str, Any]) -> bool:
    """Whether there is something that the leaderboard does not tell: siblings, or several temperatures."""
    drafting = [entry for entry in summary["methods"] if (entry.get("accepted_by") or {}).get("depth")]
    wide = any(len(entry["accepted_by"]["rank"]) > 1 for entry in drafting)
    return wide or len({entry["sampling"]["temperature"] for entry in drafting}) > 1


def show_acceptance(console: Console, summary: Mapping[str, Any]) -> None:
    """A row for every method that drafted."""
    table = Table(title="Acceptance", box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("T", "by depth %", "by rank %", "tokens a step\nby position"):
        table.add_column(name, justify="right", overflow="fold")
    for entry in summary["methods"]:
        found = entry.get("accepted_by")
        if found and found["depth"]:
            lengths = (part["length"][0] for part in found["position"])
            depths, ranks = _shares(found["depth"]), _shares(found["rank"]) if len(found["rank"]) > 1 else "-"
            warmth = f"{entry['sampling']['temperature']:g}"
            table.add_row(folded(entry["name"]), warmth, depths, ranks, _joined(f"{length:.2f}" for length in lengths))
    console.print(table)
    console.print(
        "by depth, from 1: accepted of the steps that came to a node with children one level above. by rank: of the "
        "children of that rank, the best first. by position: of the step's first new token, 0-15, 16-31, 32-63, ... "
        "Counts and intervals are in report.html.",
        style="dim",
    )


def _shares(cells: Sequence[Mapping[str, Any]]) -> str:
    return _joined(f"{100 * cell['conditional'][0]:.0f}" for cell in cells)


def _joined(words: Iterable[str]) -> str:
    found = list(words)
    return "/".join(found[:MOST]) + "/.." * (len(found) > MOST)
