"""`specdec bench ops`: what is compared, timed and told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specdec.experiments.bench import op_runs, ops, tables
from specdec.experiments.bench.clock import NOT_CAPTURED, Prepared
from specdec.experiments.bench.usage import USAGE

CPU = torch.device("cpu")
CELL = ops.OpCell("accept", 2, 5)


def test_small_operations_are_compared_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in op_runs.OPS:
        entry = ops.measure_op(ops.OpCell(op, 2, 5), CPU, 0.01)
        assert not entry["red"]
        assert ("naive" in entry["times_as_fast"]) == (op in ("ancestor_words", "accept")), op

    def wrong(batch: int, nodes: int, device: torch.device) -> op_runs.Run:
        return lambda backend: [torch.tensor([backend == "host"])]

    monkeypatch.setitem(op_runs.OPS, "accept", (("naive", "host"), wrong))
    entry = ops.measure_op(CELL, CPU, 0.01)
    assert entry["red"] == ["host"]
    assert "times_as_fast" not in entry


def test_every_small_operation_makes_the_same_inputs_twice() -> None:
    for _, make in op_runs.OPS.values():
        for a, b in zip(make(2, 5, CPU)("naive"), make(2, 5, CPU)("naive"), strict=True):
            assert torch.equal(a, b)


def test_rejection_takes_some_drafts_and_refuses_others() -> None:
    _, accepted, _ = op_runs.OPS["tree_rejection"][1](16, 8, CPU)("naive")
    assert 1 in accepted
    assert accepted.max() > 1


def test_the_usage_names_every_operation() -> None:
    assert all(op in USAGE.replace("\n", " ") for op in op_runs.OPS)


def prepared(captured: bool, change: int) -> Any:
    """Stands in for a graph, whose results may not be those of eager calls."""

    def prepare(calls: Any, device: torch.device) -> Prepared:
        return Prepared(lambda: 1.0, captured, [[out + change for out in call()] for call in calls] if captured else [])

    return prepare


def test_what_could_not_be_captured_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.measure_op(CELL, CPU, 0.01)
    assert "notes" not in right
    monkeypatch.setattr(ops, "prepare", prepared(False, 0))
    entry = ops.measure_op(CELL, CPU, 0.01)
    assert entry["notes"] == {"host": NOT_CAPTURED, "naive": NOT_CAPTURED}
    result = {"machine": {"device": "cpu"}, "cells": {CELL.key: entry, "another": right}}
    assert tables.rows(result)[0][1] == "1.00* (1.00 to 1.00)"
    timed = {**entry, "seconds": {"host": [2e-6] * 3, "naive": [2e-6] * 3}}
    assert tables.rows({"machine": {"device": "cuda"}, "cells": {"a": timed}})[0][1:3] == ["2.0*", ""]
    assert "*" not in tables.rows(result)[1][1]
    assert f"naive: {NOT_CAPTURED} (1 of 2 cells)" in tables.remarks(result)


def test_what_a_graph_writes_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "prepare", prepared(True, 0))
    assert not ops.measure_op(CELL, CPU, 0.01)["red"]
    monkeypatch.setattr(ops, "prepare", prepared(True, 1))
    entry = ops.measure_op(CELL, CPU, 0.01)
    assert entry["red"] == ["host, captured", "naive, captured"]
    assert "times_as_fast" not in entry
