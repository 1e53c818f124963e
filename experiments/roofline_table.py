"""What steps reach of the machine, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from specdec.experiments.display import folded, number
from specdec.experiments.roofline import shown


def show_roofline(console: Console, summary: Mapping[str, Any]) -> None:
    """A row for the target's step of every method, and one for its drafter's where it has weights, in 80 columns."""
    machine, dtype = summary["environment"]["machine"], summary["target"]["dtype"]
    roofs = f"{machine['bandwidth'] / 1e9:.1f} GB/s, {machine['flops'][dtype] / 1e9:,.0f} GFLOP/s in {dtype}"
    table = Table(title=f"A step against the machine: {roofs}", box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("MB", "MFLOP", "FLOP/byte", "% of GB/s", "% of FLOP/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in summary["methods"]:
        for part, name in (("verify_step", folded(entry["name"])), ("draft_step", "  its drafter")):
            if shown(entry["metrics"], part, "bytes") is None:
                continue
            scaled = {"bytes": 1e-6, "flops": 1e-6, "intensity": 1, "bandwidth_share": 100, "flops_share": 100}
            cells = [number(shown(entry["metrics"], part, key), times=factor) for key, factor in scaled.items()]
            table.add_row(name, *cells, style="" if part == "verify_step" else "dim")
    console.print(table)
