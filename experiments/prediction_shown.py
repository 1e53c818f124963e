"""A prediction beside its measurement, in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from specdec.experiments.display import folded
from specdec.experiments.predict import words


def show_prediction(console: Console, found: dict[str, Any]) -> None:
    """Predicted and measured terms, and which is off."""
    table = Table(title="Predicted/measured", box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("method", "batch", "nodes", "tokens", "verify", "propose", "rest", "speed-up"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in found["methods"]:
        expected, measured = row["predicted"], row["measured"]
        pairs = [f"{expected[name]:.2f}/{measured[name]:.2f}" for name in ("length", "verify", "propose")]
        cells = [*pairs, f"{measured['rest']:.2f}", f"{expected['speedup']:.2f}/{measured['speedup']:.2f}"]
        table.add_row(folded(row["method"]), str(row["batch"]), str(row["nodes"]), *cells)
    console.print(table)
    console.print(
        "verify (with accept and commit) and propose: in plain steps of the batch. rest: the factor of all else on the "
        "measured speed-up.",
        style="dim",
    )
    for row in found["methods"]:
        if row["off"]:
            console.print(words(row), highlight=False)
