"""The terminal's tables of texts that differ from plain decoding's: how often, where, and whether rounding did it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from specdec.experiments.display import folded
from specdec.experiments.report import text
from specdec.experiments.summary import parted

SHOWN = 12  # differences in the terminal; the report has more, requests.jsonl all of them


def show_differences(console: Console, summary: Mapping[str, Any]) -> None:
    """Two tables, in 80 columns."""
    rows = parted(summary)
    table = Table(title="When texts differ", box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("texts", "differ", "per 1000\ntokens", "ties", "bugs", "top-2 gap\np50", "noise\np50"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in rows:
        bugs = found["different"] - found["ties"]
        middle = [_middle(found, key) for key in ("top2_gap", "noise")]
        rate = text.number(found["per_thousand_tokens"])
        counts = [str(found[key]) for key in ("compared", "different")]
        table.add_row(folded(name), *counts, rate, str(found["ties"]), str(bugs), *middle, style="red" if bugs else "")
    console.print(table)
    each = [(name, d) for name, found in rows for d in found["differences"]]
    if not each:
        return
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("method", "question", "token", "expected", "got", "gap", "noise", "verdict"):
        table.add_column(name, overflow="fold")
    for name, d in each[:SHOWN]:
        expected, got = (repr(piece) for piece in d["pieces"] or ("", ""))
        numbers = [text.number(d["gap"], 3), text.number(d["noise"], 3)]
        word = text.tie_or_bug(d)
        place = text.DASH if d["position"] is None else str(d["position"])
        table.add_row(folded(name), str(d["question_id"]), place, expected, got, *numbers, word)
    console.print(table)
    if len(each) > SHOWN:
        console.print(f"and {len(each) - SHOWN} more: requests.jsonl has them all", style="dim")


def _middle(found: Mapping[str, Any], key: str) -> str:
    values = [d[key] for d in found["differences"] if d[key] is not None]
    return text.number(median(values) if values else None, 3)
