"""`specdec bench`: the arithmetic of its clock, the gate, files that are gone on with, tables, and a tiny run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.experiments import provenance
from specdec.experiments.bench import command, gate, measure, rivals, tables
from specdec.experiments.bench.clock import by_turns, host_turn, quantiles, ratios
from specdec.experiments.bench.cost import cost
from specdec.experiments.bench.grid import EVEN, RAGGED, Cell, cells
from specdec.experiments.bench.inputs import Inputs, Pools, make_inputs, pool_count
from specdec.experiments.bench.plot import roofline
from specdec.experiments.bench.results import Results, load
from specdec.experiments.bench.targets import OPEN, verdicts
from specdec.experiments.cli import main
from specdec.kernels.tree_attention import flash_attn, flex, tree_attention, varlen

CPU = torch.device("cpu")
TINY = Cell((5, 70, 5), 9, 4, 2, 16, "float32", "float32")


def inputs_of(cell: Cell) -> Inputs:
    return make_inputs(cell, Pools(CPU))


def test_quantiles_interpolate() -> None:
    assert quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert quantiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0))
    with pytest.raises(ValueError, match="no samples"):
        quantiles([])


def test_ratios_pair_samples_of_a_round() -> None:
    """A machine that becomes twice as slow half way does not change who is faster."""
    assert ratios([1.0, 2.0, 1.0], [3.0, 6.0, 3.0]) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [3.0])


def test_turns_alternate_and_fit_into_the_time() -> None:
    time, order = [0.0], []

    def turn(name: str, seconds: float) -> Callable[[], float]:
        def sample() -> float:
            order.append(name)
            time[0] += seconds
            return seconds

        return sample

    turns = {"a": turn("a", 1.0), "b": turn("b", 3.0)}
    samples = by_turns(turns, 22.0, now=lambda: time[0])
    assert samples == {"a": [1.0] * 5, "b": [3.0] * 5}  # a sixth round would end at 24
    assert order == ["a", "b"] * 5
    assert len(by_turns(turns, 0.1, least=3, now=lambda: time[0])["b"]) == 3
    assert len(by_turns(turns, 1e9, most=7, now=lambda: time[0])["a"]) == 7
    assert by_turns({}, 1.0) == {}


def test_a_turn_on_the_host_rotates_through_the_calls() -> None:
    time, seen = [0.0], []

    def call(which: int) -> Callable[[], None]:
        def do() -> None:
            seen.append(which)
            time[0] += 0.5

        return do

    turn = host_turn([call(i) for i in range(3)], floor=2.0, clock=lambda: time[0])  # 4 calls a sample
    assert turn() == turn() == 0.5
    assert seen == [i % 3 for i in range(2 + 8)]


def test_every_target_is_in_the_small_grid_or_the_full_one() -> None:
    small, full = ({cell.key for cell in cells(grid)} for grid in ("small", "full"))
    assert small <= full
    assert len(full) == len(cells("full"))
    wanted = [verdict.what for verdict in verdicts(None)]
    assert len(set(wanted)) == len(wanted)
    entry = {"seconds": {"triton": [1e-6] * 3}, "times_as_fast": {name: [9.0] * 3 for name in _rival_names()}}
    measured = {"machine": {"device": "cuda", "copy_bandwidth": 4.3e12}, "cells": dict.fromkeys(full, entry)}
    assert OPEN not in {verdict.state for verdict in verdicts(measured)}
    flexes = [cell for cell in cells("full") if cell.flex]
    for what in ("flex over ours, tree B=1 L=16384 N=16", "flex over ours, tree B=8 L=16384 N=32"):
        assert what in wanted
    assert {(c.batch, c.context, c.nodes) for c in flexes} >= {(1, "16384", 16), (8, "16384", 32)}
    assert any(cell.contexts == RAGGED for cell in flexes)
    assert sum(EVEN) == sum(RAGGED)


def _rival_names() -> list[str]:
    return [method.name for method in rivals.METHODS]


def test_costs_by_hand() -> None:
    cell = Cell((100, 20), 70, 8, 2, 64)
    kv = (120 + 140) * 2 * 64 * 2 * 2
    assert cost(cell).bytes == kv + 2 * 140 * 8 * 64 * 2 + 140 * 2 * 8
    assert cost(cell).flops == 4 * 70 * (170 + 90) * 8 * 64
    assert cost(Cell((100, 20), 70, 8, 2, 64, kv_dtype="float8_e4m3fn")).bytes == cost(cell).bytes - kv // 2
    assert cost(Cell((100, 20), 70, 8, 2, 64, chain=True)).bytes == cost(cell).bytes - 140 * 2 * 8


def test_pools_outgrow_the_cache() -> None:
    assert pool_count(1 << 20, CPU) == 8
    assert pool_count(1 << 40, CPU) == 2
    inputs = inputs_of(TINY)
    keys = [k for k, _ in inputs.pools]
    assert len({k.data_ptr() for k in keys}) == len(keys) > 1
    assert all(torch.equal(k, keys[0]) for k in keys)


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_method_on_a_cpu_is_right(chain: bool, dtype: str) -> None:
    cell = Cell((5, 70, 5), 9, 4, 2, 16, dtype, dtype, chain=chain)
    inputs = inputs_of(cell)
    wanted = gate.expected(inputs)
    chosen = rivals.methods(cell, "cpu") + [m for m in rivals.METHODS if m.name == "naive"]
    assert [method.name for method in chosen] == ["cpp", "packed", "sdpa", "sdpa_packed", "naive"]
    for method in chosen:
        assert gate.error(method.make(inputs)(*inputs.pools[0]), wanted) <= wanted.allowed, method.name


def test_the_flex_rival_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex, "compiled", lambda device: flex_attention.flex_attention)  # not for 30 seconds
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    inputs = inputs_of(TINY)
    wanted = gate.expected(inputs)
    assert gate.error(rivals._flex(inputs)(*inputs.pools[0]), wanted) <= wanted.allowed


def test_who_is_asked_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "available", lambda device: True)
    monkeypatch.setattr(varlen, "parameters", lambda: {"block_table", "enable_gqa"})
    monkeypatch.setattr(flash_attn, "installed", lambda: True)

    def names(**settings: Any) -> list[str]:
        return [m.name for m in rivals.methods(Cell((4096,) * 8, 16, **settings), "cuda")]

    both = ["sdpa", "sdpa_packed"]
    assert names() == ["triton", *both]
    assert names(flex=True) == ["triton", *both, "flex"]
    assert names(chain=True) == ["triton", *both, "varlen", "flash_attn"]
    assert names(plan=True, flex=True) == ["triton"]
    assert names(kv_dtype="float8_e4m3fn", flex=True) == ["triton"]
    monkeypatch.setattr(varlen, "parameters", lambda: {"window_size"})  # it would copy the keys
    assert names(chain=True) == ["triton", *both, "flash_attn"]


def planted(name: str, change: Callable[[Tensor], Tensor]) -> rivals.Method:
    """A method that is wrong in some way."""

    def make(inputs: Inputs) -> rivals.Attend:
        i = inputs
        return lambda k, v: change(
            tree_attention(i.q, k, v, i.block_table, i.row_starts, i.context_lens, i.tree_sizes, i.words)
        )

    return rivals.Method(name, lambda cell, device: True, make)


def wrong_last_row(out: Tensor) -> Tensor:
    out[-1] += 1e-3
    return out


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "last row": wrong_last_row,
    "longest": lambda out: torch.cat([out[:9], out[9:18].flip(0), out[18:]]),
    "nan": lambda out: out * math.nan,
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_method_is_not_timed(how: str) -> None:
    right, wrong = planted("right", lambda out: out), planted("wrong", WRONG[how])
    entry = measure.measure(inputs_of(TINY), [right, wrong], 0.01, None)
    assert entry["red"] == ["wrong"]
    assert entry["gate"]["right"]["right"]
    assert "times_as_fast" not in entry
    assert measure.measure(inputs_of(TINY), [right, planted("same", lambda out: out)], 0.01, None)["times_as_fast"]


def test_what_fails_is_left_out_with_its_error_unless_it_is_ours() -> None:
    def fail(inputs: Inputs) -> rivals.Attend:
        raise RuntimeError("out of\nmemory")

    broken = rivals.Method("broken", lambda cell, device: True, fail)
    right = planted("right", lambda out: out)
    entry = measure.measure(inputs_of(TINY), [right, broken], 0.01, None)
    assert entry["notes"] == {"broken": "RuntimeError: out of memory"}
    assert not entry["red"]
    assert entry["times_as_fast"] == {}
    assert measure.measure(inputs_of(TINY), [broken, right], 0.01, None)["red"] == ["broken"]


def test_times_and_shares_where_a_bandwidth_is_known() -> None:
    entry = measure._tell({"triton": [2e-6] * 3, "sdpa": [6e-6] * 3}, "triton", inputs_of(TINY), 1e12)
    assert entry["seconds"] == {"triton": [2e-6] * 3, "sdpa": [6e-6] * 3}
    assert entry["times_as_fast"] == {"sdpa": [3.0] * 3}
    assert entry["share_of_copy"]["triton"] == pytest.approx(cost(TINY).bytes / 2e-6 / 1e12, abs=1e-4)
    assert "seconds" not in measure._tell({"packed": [2e-6]}, "packed", inputs_of(TINY), None)


@pytest.fixture
def tiny_grid(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    grid = [Cell((7,) * batch, 3, 2, 1, 16, "float32", "float32") for batch in (1, 2)]
    monkeypatch.setattr(command, "cells", lambda name: grid)
    return grid


def run_bench(*arguments: str) -> int:
    return main(["bench", *arguments])


def test_a_tiny_run_from_the_command_to_the_readme(tiny_grid: list[Cell], tmp_path: Path, capsys: Any) -> None:
    file, readme = tmp_path / "new" / "kernels.json", tmp_path / "README.md"
    assert run_bench("kernels", f"output={file}", "seconds=0.01", "device=cpu") == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert json.loads(last) == {"output": str(file), "cells": 2}
    result = load(file)
    assert list(result["cells"]) == [cell.key for cell in tiny_grid]
    assert result["provenance"]["config"]["grid"] == "cpu"
    assert "seconds" not in str(result["cells"])  # a CPU tells ratios only
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    assert run_bench("table", str(file), str(readme)) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    rows = [line.split(" | ")[:4] for line in text.splitlines() if line.startswith("| 2/1/16")]
    assert rows == [
        ["| 2/1/16", "float32", batch, "7"] for batch in ("1", "2", "1", "2", "1", "2", "1")
    ]  # over packed and both forms of sdpa twice, over naive once
    assert text.count(f"| {OPEN} |") == len(verdicts(None))
    with pytest.raises(ValueError, match="a roofline needs times"):
        roofline(result, tmp_path / "roofline.png")


def test_a_killed_run_goes_on_and_keeps_its_cells(
    tiny_grid: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, done = tmp_path / "kernels.json", []

    def stop_at_the_second(inputs: Inputs, *rest: Any) -> dict[str, Any]:
        done.append(inputs.cell.key)
        if len(done) == 2:
            raise KeyboardInterrupt
        return {"gate": {}, "red": [], "times_as_fast": {"sdpa": [len(done)] * 3}}

    monkeypatch.setattr(measure, "measure", stop_at_the_second)
    arguments = ("kernels", f"output={file}", "device=cpu")
    assert run_bench(*arguments) == 130
    assert list(load(file)["cells"]) == [tiny_grid[0].key]
    assert run_bench(*arguments) == 0
    assert done == [tiny_grid[0].key, tiny_grid[1].key, tiny_grid[1].key]
    assert run_bench(*arguments) == 0
    assert len(done) == 3
    assert run_bench(*arguments, "again=true") == 0
    assert len(done) == 5


def test_the_time_ends_before_the_cells(tiny_grid: list[Cell], tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "kernels.json"
    assert run_bench("kernels", f"output={file}", "device=cpu", "minutes=1e-9") == 0
    assert "2 cells left after 1e-09 minutes" in capsys.readouterr().err
    assert not file.exists()


def test_a_wrong_result_fails_the_command(
    tiny_grid: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    wrong = [planted("packed", WRONG["nan"])]
    monkeypatch.setattr(command, "methods", lambda cell, device: wrong)
    assert run_bench("kernels", f"output={tmp_path / 'k.json'}", "device=cpu") == 1
    assert (
        f"2 cells have wrong results and no times, the first: packed in {tiny_grid[0].key}" in capsys.readouterr().err
    )


def test_cells_of_other_code_are_not_mixed(tmp_path: Path) -> None:
    file = tmp_path / "k.json"
    Results(file, {}, CPU).add("a", {"red": []})
    assert list(Results(file, {}, CPU).cells) == ["a"]
    content = json.loads(file.read_text())
    content["provenance"]["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"other code or another machine: commit .*torch 1\.0.*again=true"):
        Results(file, {}, CPU)
    content["provenance"] = json.loads(json.dumps(Results(tmp_path / "new.json", {}, CPU).content["provenance"]))
    git = content["provenance"]["git"] = content["provenance"]["git"] or {"commit": None}
    git["dirty"] = not git.get("dirty", False)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="and changes"):
        Results(file, {}, CPU)
    assert not Results(file, {}, CPU, again=True).cells
    file.write_text("{")
    with pytest.raises(ValueError, match="is not a result of `specdec bench`"):
        Results(file, {}, CPU)


def test_results_in_the_repository_are_no_changes_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that writes there could not be gone on with."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    result = tmp_path / "benchmarks" / "results" / "gpu" / "kernels.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    assert provenance.git_state() == {"commit": None, "dirty": False}
    (tmp_path / "benchmarks" / "loop.py").touch()
    assert provenance.git_state() == {"commit": None, "dirty": True, "changed": 1, "diff_sha256": None}


MISTAKES = {
    "part": (["kernel"], "Did you mean 'kernels'?"),
    "setting": (["kernels", "minuets=3"], "Did you mean 'minutes'?"),
    "no setting": (["kernels", "full"], "'full' is no setting; expected name=value"),
    "grid": (["kernels", "grid=fall"], "Did you mean 'full'?"),
    "grid of a GPU": (["kernels", "device=cpu", "grid=small"], "grid=small is not for device=cpu"),
    "device": (["ops", "device=tpu"], "device=tpu is not there; expected cpu"),
    "minutes": (["kernels", "minutes=soon"], "minutes=soon; expected a number above 0"),
    "seconds": (["ops", "seconds=-1"], "seconds=-1; expected a number above 0"),
    "again": (["kernels", "again=yes"], "again=yes; expected true or false"),
    "table": (["table", "one"], "takes a result and a README"),
    "no result": (["table", "nowhere.json", "README.md"], "is not a result of `specdec bench`"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name: str, capsys: Any) -> None:
    arguments, told = MISTAKES[name]
    assert run_bench(*arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_the_command_lists_what_there_is(capsys: Any) -> None:
    assert run_bench() == 0
    shown = capsys.readouterr().out
    assert all(f"specdec bench {part}" in shown for part in ("kernels", "ops", "table"))


def test_it_needs_neither_hydra_nor_a_tracker() -> None:
    """A GPU's image may have little more than torch."""
    code = """
import sys
for name in ("hydra", "omegaconf", "wandb", "polars", "jinja2", "flash_attn"):
    sys.modules[name] = None
from specdec.experiments.cli import main
sys.exit(main(["bench", "ops", "device=cpu", "minutes=1e-9"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cells left" in done.stderr


def gpu_result() -> dict[str, Any]:
    def entry(cell: Cell, ours: float, theirs: dict[str, float]) -> dict[str, Any]:
        times = {"triton": ours, **theirs}
        return {
            "red": [], "bytes": cost(cell).bytes, "flops": cost(cell).flops,
            "seconds": {k: [v] * 3 for k, v in times.items()}, "share_of_copy": dict.fromkeys(times, 0.5),
            "times_as_fast": {k: [v / ours] * 3 for k, v in theirs.items()},
        }  # fmt: skip

    one, many = Cell((16384,) * 8, 1), Cell((16384,) * 8, 16)
    return {
        "provenance": {"gpu": ["a GPU"]},
        "machine": {"device": "cuda", "copy_bandwidth": 2.15e12, "read_bandwidth": 2.5e12, "matmul_rate": 4e14},
        "cells": {
            one.key: entry(one, 200e-6, {}),
            many.key: entry(many, 300e-6, {"sdpa": 900e-6, "sdpa_packed": 450e-6, "flex": 600e-6}),
        },
    }


def test_verdicts_scale_times_with_the_copy() -> None:
    states = {verdict.what: verdict for verdict in verdicts(gpu_result())}
    time = states["B=8 L=16384 N=16"]
    assert (time.wanted, time.got, time.state) == (
        "at most 278 us",
        "300 us",
        "missed by 1.08x",
    )  # 139 at twice the copy
    assert states["B=8 L=16384: N=16 over N=1"].state == "missed by 1.36x"
    assert states["sdpa over ours, tree B=8 L=16384 N=16"].state == "missed by 1.33x"
    assert states["flex over ours, tree B=8 L=16384 N=16"] == (
        "flex over ours, tree B=8 L=16384 N=16", "at least 1x", "2x", "reached"
    )  # fmt: skip
    assert states["B=1 L=1024 N=16"].state == OPEN


def test_a_readme_has_a_column_for_every_number_of_nodes() -> None:
    def entry(nodes: int, ratio: float | None) -> dict[str, Any]:
        times = {"times_as_fast": {"sdpa": [ratio] * 3}} if ratio else {}
        return {"cell": Cell((9, 9), nodes).about, "red": [] if ratio else ["packed"], **times}

    about = {"cpu": {"model": "a CPU"}, "threads": 1, "versions": {"torch": "2"}, "time": "2030-01-02T03"}
    cpu = {"provenance": about, "cells": {"a": entry(8, 2.0), "b": entry(1, 0.5), "c": entry(16, None)}}
    text = tables.markdown(cpu, gpu_result())
    assert "a CPU, threads: 1, torch 2, 2030-01-02." in text
    assert "| B | context | N = 1 | N = 8 | N = 16 |" in text
    assert "| 32/8/128 | bfloat16 | 2 | 9 | 0.50 | 2.00 | wrong |" in text
    assert "1 reached" in text
    assert "3 missed" in text


def test_a_gpus_table_and_roofline(tmp_path: Path) -> None:
    result = gpu_result()
    assert tables.header(result) == ["cell", "us", "of copy", "over sdpa", "over sdpa_packed", "over flex"]
    times = ["3.00 (3.00 to 3.00)", "1.50 (1.50 to 1.50)", "2.00 (2.00 to 2.00)"]
    assert tables.rows(result)[1][1:] == ["300.0", "50%", *times]
    assert tables.table(result, "x").row_count == 2
    assert roofline(result, tmp_path / "deep" / "roofline.svg") == 5
    assert "TFLOP/s" in (tmp_path / "deep" / "roofline.svg").read_text()
