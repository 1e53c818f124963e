"""`specdec bench step`: what a step commits and writes, its floor, and the host's share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.core import Verdict
from specdec.decode import Decoding
from specdec.experiments.bench import stand_ins, step, tables
from specdec.experiments.bench.cost import step_cost
from specdec.experiments.bench.grid import StepCell
from specdec.experiments.bench.rates import Rates
from specdec.experiments.bench.results import load
from specdec.experiments.cli import main
from specdec.tree.token_tree import TokenTree

CELL = StepCell(2, 4, 30)
RATES = Rates(1e9, 1e9, 1e12)


def test_costs_of_a_step_by_hand() -> None:
    model = stand_ins.random_model("cpu")
    hidden, middle, vocab, layers, heads, kv_heads, dim = 64, 128, 1000, 2, 4, 2, 16
    matrices = layers * (2 * hidden * hidden + 2 * hidden * kv_heads * dim + 3 * hidden * middle) + vocab * hidden
    norms = (2 * layers + 1) * hidden
    cost = step_cost(model, CELL)
    assert cost.bytes == 4 * (matrices + norms) + 2 * 30 * layers * 2 * kv_heads * dim * 4
    assert cost.flops == 2 * 2 * 4 * matrices + 2 * layers * 4 * 4 * (30 + 4) * heads * dim


def test_steps_of_the_loop_and_their_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "STEPS", 3)
    monkeypatch.setattr(step, "ROUNDS", 2)
    model = stand_ins.random_model("cpu")
    assert step.measure_step(model, CELL, None) == {"cell": vars(CELL), "red": []}
    entry = step.measure_step(model, CELL, RATES)
    assert entry["floor"] == pytest.approx(step_cost(model, CELL).bytes / 1e9)
    assert entry["binds"] == "bytes"
    assert entry["over_floor"] == pytest.approx(entry["seconds"][1] / entry["floor"])
    slow = step.measure_step(model, CELL, RATES._replace(matmul_rate=1e3))
    assert slow["floor"] == pytest.approx(step_cost(model, CELL).flops / 1e3)
    assert slow["binds"] == "flops"


def test_the_hosts_share_is_what_the_step_alone_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_run", lambda decoding, context, steps: _count(decoding, context, steps, 4.0))
    monkeypatch.setattr(step, "_alone", lambda run: 3.0)
    entry = step.measure_step(stand_ins.random_model("cpu"), CELL, RATES)
    assert entry["host_share"] == pytest.approx(0.25)
    assert (entry["gpu_seconds"], entry["seconds"]) == (3.0, [4.0] * 3)


def _count(decoding: Decoding, context: int, steps: int, seconds: float) -> float:
    decoding.run.target.lengths.fill_(context + step.ACCEPTED * steps)
    for generation in decoding.slots:
        if generation:
            generation.ids += [0] * (step.ACCEPTED * steps)
    return seconds


def test_the_context_is_no_zeros_and_every_slot_serves() -> None:
    decoding = step._begin(stand_ins.random_model("cpu"), CELL, 3)
    assert decoding.serving == [0, 1]
    for arena in decoding.run.target.cache.arenas:
        assert float(arena.std()) == pytest.approx(1.0, abs=0.1)
    again = step._begin(stand_ins.random_model("cpu"), CELL, 3)
    pairs = zip(decoding.run.target.cache.arenas, again.run.target.cache.arenas, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def only_roots(tree: TokenTree) -> Verdict:
    """Only roots."""
    path = torch.full(tree.tokens.shape, -1).index_fill(1, torch.tensor([0]), 0)
    return Verdict(path, tree.sizes.clamp(max=1), tree.tokens[:, 0])


def test_steps_that_commit_too_little_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stand_ins.random_model("cpu")
    with monkeypatch.context() as patched:
        patched.setattr(stand_ins.Accepting, "__call__", lambda rule, tree, *_: only_roots(tree))
        entry = step.measure_step(model, CELL, RATES)
    assert entry["red"] == ["lengths", "texts"]
    assert "seconds" not in entry
    monkeypatch.setattr(Decoding, "_collect", lambda decoding, flight: [])
    assert step.measure_step(model, CELL, None)["red"] == ["texts"]


def test_the_table_says_what_binds_and_what_is_covered() -> None:
    entry: dict[str, Any] = {
        "red": [], "seconds": [2e-3] * 3, "gpu_seconds": 1.6e-3, "floor": 1.6e-3, "binds": "flops", "over_floor": 1.1,
        "host_share": 0.2,
    }  # fmt: skip
    machine = {"device": "cuda", **RATES._asdict()}
    shown = tables.step_table({"machine": machine, "cells": {"a": entry, "b": {"red": ["texts"]}}})
    assert "chains, greedy, no draft cost" in str(shown.title)
    assert "a sum reads 0.00 TB/s" in str(shown.caption)
    first = [next(iter(column.cells)) for column in shown.columns]
    assert first == ["a", "2.000", "1.600", "1.100, reached", "product", "0.200, missed"]
    assert list(shown.columns[1].cells)[1] == "wrong: texts"


def test_the_part_for_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", f"output={tmp_path / 'step.json'}"]) == 0
    assert "not timed" in capsys.readouterr().out
    assert list(load(tmp_path / "step.json")["cells"]) == ["B=2 N=4 L=100"]
