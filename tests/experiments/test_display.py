"""What a run shows in the terminal."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from specdec.experiments.display import NAME_WIDTH, folded, show_table


def method(name: str, verdict: str, label: str = "") -> dict[str, Any]:
    shares = {"draft": 0.12, "verify": 0.8, "accept": 0.03, "commit": 0.01}
    metrics = {"phase_share": shares, "mean_accepted_length_pooled": 2.345, "tokens_per_second": 1234.0}
    speedup = {"ratio": 2.61, "low": 2.22, "high": 3.06, "label": label}
    return {"name": name, "metrics": metrics, "speedup": speedup, "lossless": {"verdict": verdict}}


def test_the_table_is_readable_in_80_columns() -> None:
    """A long name is broken after an underscore, nothing is cut off, and a row takes three lines at most."""
    methods = [
        method("none", "baseline"),
        method("draft_model_best_first_wide", "yes (12 ties)"),
        method("perfect_synthetic", "in distribution", "synthetic"),
        method("broken", "no", "failed check"),
    ]
    console = Console(width=80, record=True)
    show_table(console, {"experiment": "compare", "target": {"name": "t", "dtype": "float32"}, "methods": methods})
    lines = console.export_text().splitlines()
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line and line[0].isalpha()]
    begin = names.index("none")
    assert names[begin : begin + 5] == ["none", "draft_model_best_", "first_wide", "perfect_synthetic", "broken"]
    assert sum("[2.22, 3.06]" in line for line in lines) == 4
    assert any("(failed check," in line for line in lines)
    assert any("noise not measured)" in line for line in lines)


@pytest.mark.parametrize(
    "name", ["a", "_", "a_b_c", "x" * 50, "one_" * 12, "", "draft_model_with_a_very_long_name-indeed"]
)
def test_folded_names_are_whole(name: str) -> None:
    lines = folded(name).split("\n") if name else []
    assert "".join(lines) == name
    assert all(0 < len(line) <= NAME_WIDTH for line in lines)
