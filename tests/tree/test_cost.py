"""Cost curves: between their points, before and behind them, and what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdec.tree.cost import CostCurve, read_curve, sequences_curve


def test_between_before_and_behind_the_points() -> None:
    curve = CostCurve((2, 4, 8), (1.0, 1.5, 3.5))
    assert [curve(rows) for rows in (1, 2, 3, 4, 6, 8, 10)] == [1.0, 1.0, 1.25, 1.5, 2.5, 3.5, 4.5]
    falling = CostCurve((1, 2, 3), (1.0, 1.2, 1.1))
    assert falling(2.5) == pytest.approx(1.15)
    assert falling(9) == 1.1  # what was noise does not go on for ever


def test_a_straight_line_and_nothing() -> None:
    assert [CostCurve.make(0.1)(rows) for rows in (1, 2, 11)] == pytest.approx([1.0, 1.1, 2.0])
    assert [CostCurve.make(None)(rows) for rows in (1, 200)] == [1.0, 1.0]


def test_a_measured_file_counts_the_rows_of_all_sequences(tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    file.write_text(json.dumps({"nodes": [1, 2, 4], "cost": [1.0, 1.5, 2.5], "batch": 8}))
    curve = CostCurve.make(str(file))
    assert list(curve.rows) == [8, 16, 32]
    assert [curve(rows) for rows in (4, 8, 24)] == [1.0, 1.0, 2.0]


def test_what_several_sequences_cost_is_read_where_it_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    measured = {"nodes": [1, 2], "cost": [1.0, 1.5]}
    file.write_text(json.dumps(measured))
    assert sequences_curve(file) is sequences_curve(0.1) is sequences_curve(None) is None
    file.write_text(json.dumps(measured | {"sequences": [1, 8], "sequences_cost": [1.0, 2.75]}))
    assert sequences_curve(str(file)) == CostCurve((1, 8), (1.0, 2.75))


def test_refuses(tmp_path: Path) -> None:
    for rows, cost in [((1,), (1,)), ((1, 1), (1, 2)), ((0, 1), (1, 2)), ((1, 2), (1, 0)), ((1, 2), (1,))]:
        with pytest.raises(ValueError, match="a cost curve needs at least two points, rows ascending"):
            CostCurve(rows, cost)
    file = tmp_path / "summary.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match="is no cost curve: it has no `nodes` and `cost`"):
        read_curve(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_curve(file)
