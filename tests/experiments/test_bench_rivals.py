"""`specdec bench kernels`: rivals at their best, results of captured calls, the machine's rates, what tables tell."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.experiments.bench import command, gate, measure, rates, rivals, sdpa, tables
from specdec.experiments.bench.clock import NOT_CAPTURED, Prepared, device_turn
from specdec.experiments.bench.grid import Cell, cells
from specdec.experiments.bench.inputs import Inputs, Pools, make_inputs
from specdec.experiments.bench.rates import Rates
from specdec.experiments.bench.results import Results, load
from specdec.experiments.bench.targets import OPEN, verdicts
from specdec.experiments.cli import main

CPU = torch.device("cpu")
TINY = Cell((5, 70, 5), 9, 4, 2, 16, "float32", "float32")
PACKED = [method for method in rivals.METHODS if method.name == "packed"]


@pytest.fixture
def inputs() -> Inputs:
    return make_inputs(TINY, Pools(CPU))


@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("chain", [False, True])
def test_packed_sdpa_is_right_with_any_group(heads: tuple[int, int], chain: bool) -> None:
    made = make_inputs(Cell((5, 70, 5), 9, *heads, 16, "float32", "float32", chain=chain), Pools(CPU))
    wanted = gate.expected(made)
    attend = sdpa.make_packed_sdpa(made)
    assert attend.q.shape == (3, heads[1], heads[0] // heads[1] * 9, 16)
    assert attend.mask.stride(2) % sdpa.ALIGNMENT == 0
    assert gate.error(attend(*made.pools[0]), wanted) <= wanted.allowed


def test_the_way_that_sdpa_goes_is_told(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = measure.measure(inputs, rivals.methods(TINY, "cpu"), 0.01, None)
    assert entry["sdpa"] == {"sdpa": "flash attention", "sdpa_packed": "flash attention"}
    result = {"machine": {"device": "cpu"}, "cells": {TINY.key: entry}}
    assert "sdpa_packed: flash attention (1 of 1 cells)" in tables.remarks(result)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert sdpa.make_sdpa(inputs).path(*inputs.pools[0]) == "math"
    monkeypatch.delattr(torch, "_fused_sdp_choice")
    assert sdpa.make_sdpa(inputs).path(*inputs.pools[0]) == "unknown"


def test_a_target_over_sdpa_holds_against_its_better_form() -> None:
    cell = Cell((16384,), 16)
    what = "sdpa over ours, tree B=1 L=16384 N=16"

    def state(times: dict[str, float], **more: Any) -> str:
        entry = {"seconds": {"triton": [1e-5] * 3}, "times_as_fast": {k: [v] * 3 for k, v in times.items()}, **more}
        found = verdicts({"machine": {"device": "cuda"}, "cells": {cell.key: entry}})
        return next(verdict.state for verdict in found if verdict.what == what)

    assert state({"sdpa": 9.0, "sdpa_packed": 4.5}) == "reached"
    assert state({"sdpa": 9.0, "sdpa_packed": 2.0}) == "missed by 2.00x"
    assert state({"sdpa": 2.0, "sdpa_packed": 9.0}) == "missed by 2.00x"
    assert state({"sdpa": 9.0}) == OPEN
    assert state({"sdpa": 9.0}, notes={"sdpa_packed": "OutOfMemoryError: 64 GiB"}) == "reached"
    assert state({}, notes={"sdpa": "x", "sdpa_packed": "x"}) == OPEN


def replayed(change: Callable[[Tensor], Tensor], captured: bool = True) -> Any:
    """Stands in for a graph: `change` is what replays do to what they should write."""

    def prepare(calls: Any, device: torch.device) -> Prepared:
        outputs = [torch.empty_like(call()) for call in calls] if captured else []

        def turn() -> float:
            for out, call in zip(outputs, calls):
                out.copy_(change(call()))
            return 1.0

        return Prepared(turn, captured, outputs)

    return prepare


def test_what_a_replay_writes_is_compared(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "prepare", replayed(lambda out: out))
    entry = measure.measure(inputs, PACKED, 0.01, None)
    assert list(entry["gate"]) == ["packed", "packed, captured"]
    assert not entry["red"]
    monkeypatch.setattr(measure, "prepare", replayed(lambda out: out.flip(0)))
    entry = measure.measure(inputs, PACKED, 0.01, None)
    assert entry["red"] == ["packed, captured"]
    assert "times_as_fast" not in entry


def test_a_replay_that_writes_nothing_is_wrong(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier call left in the memory is not taken for the replay's."""

    def stale(calls: Any, device: torch.device) -> Prepared:
        return Prepared(lambda: 1.0, True, [call() for call in calls])

    monkeypatch.setattr(measure, "prepare", stale)
    assert measure.measure(inputs, PACKED, 0.01, None)["gate"]["packed, captured"]["error"] == math.inf


def test_one_pool_that_is_wrong_is_enough(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [0]

    def last_is_off(out: Tensor) -> Tensor:
        seen[0] += 1
        return out + (seen[0] % len(inputs.pools) == 0)

    monkeypatch.setattr(measure, "prepare", replayed(last_is_off))
    assert measure.measure(inputs, PACKED, 0.01, None)["red"] == ["packed, captured"]


def test_what_could_not_be_captured_is_noted(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "prepare", replayed(lambda out: out, captured=False))
    assert measure.measure(inputs, PACKED, 0.01, None)["notes"] == {"packed": NOT_CAPTURED}


def test_rates_are_measured_at_every_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, found = tmp_path / "k.json", [Rates(1.0, 2.0, 3.0), Rates(4.0, 5.0, 6.0)]
    monkeypatch.setattr(command, "measure_rates", lambda device: found.pop(0))
    grid = [Cell((7,) * batch, 3, 2, 1, 16, "float32", "float32") for batch in (1, 2)]
    for count in (1, 2):
        monkeypatch.setattr(command, "cells", lambda name, count=count: grid[:count])
        assert main(["bench", "kernels", f"output={file}", "seconds=0.01", "device=cpu"]) == 0
    machine = load(file)["machine"]
    assert machine == {"device": "cpu", **Rates(4.0, 5.0, 6.0)._asdict(), "earlier": [Rates(1.0, 2.0, 3.0)._asdict()]}
    assert rates.measure_rates(CPU) is None
    assert "earlier" not in Results(tmp_path / "new.json", {}, CPU).machine


def test_one_cell_has_the_plan_in_its_time_and_the_table_says_so() -> None:
    planned = [cell for cell in cells("small") if cell.plan]
    assert [cell.key for cell in planned] == ["tree B=8 N=16 L=16384 32/8/128 bfloat16, with the plan"]
    assert [method.name for method in rivals.methods(planned[0], "cuda")] == ["triton"]
    machine = {"device": "cuda", "copy_bandwidth": 4.3e12, "read_bandwidth": 4.6e12, "matmul_rate": 7.5e14}
    told = tables.remarks({"machine": machine, "cells": {planned[0].key: {}}})
    assert told == ["a copy moves 4.30 TB/s, a sum reads 4.60 TB/s, a product does 750 TFLOP/s", tables.PLAN]


def test_the_plan_is_made_in_every_call_of_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    launch = SimpleNamespace(Workspace=lambda: SimpleNamespace(begin=lambda: begun.append(1)))
    monkeypatch.setitem(sys.modules, "specdec.kernels.tree_attention.launch", launch)  # it needs Triton
    monkeypatch.setattr(rivals, "tree_attention", lambda *_, **__: None)
    for plan in (False, True):
        made = make_inputs(Cell((5,), 3, 2, 1, 16, "float32", "float32", plan=plan), Pools(CPU))
        attend = rivals._tree_attention(made, "triton")
        for _ in range(2):
            attend(*made.pools[0])
    assert len(begun) == 2


@pytest.mark.gpu
def test_a_graph_gives_back_what_it_writes() -> None:
    source = torch.arange(5.0, device="cuda")
    doubled = device_turn([partial(torch.mul, source, factor) for factor in (2, 3)])
    assert doubled.captured
    for out in doubled.outputs:
        out.fill_(math.nan)
    assert doubled.turn() > 0
    assert [out.tolist() for out in doubled.outputs] == [[0, 2, 4, 6, 8], [0, 3, 6, 9, 12]]
    waiting = device_turn([lambda: source.sum().item()])
    assert not waiting.captured
    assert not waiting.outputs
    assert waiting.turn() > 0
