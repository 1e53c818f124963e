"""Kernels compile for GPUs that are not there: no spills, and few enough resources for the blocks we count on.

A child process compiles, since this one may be interpreting. What it proves nothing about: numbers and time.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes of a block, at most
REGISTERS = 65536  # of a multiprocessor
Job = dict[str, Any]


def compile_ahead(arch: int, jobs: list[Job], cache: Path) -> list[dict[str, int]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "kernels" / "compile_ahead.py"), str(arch), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def blocks_per_multiprocessor(arch: int, used: dict[str, int]) -> int:
    by_registers = REGISTERS // (used["registers"] * used["warps"] * 32)
    return min(by_registers, SHARED[arch] // max(used["shared"], 1))


def check(arch: int, jobs: list[Job], cache: Path) -> list[dict[str, int]]:
    compiled = compile_ahead(arch, jobs, cache)
    for job, used in zip(jobs, compiled, strict=True):
        assert used["stack"] == 0, f"{job} spills on sm_{arch}: {used}"
        assert used["shared"] <= SHARED[arch], f"{job} does not fit on sm_{arch}: {used}"
        if job["kernel"] == "split":
            assert blocks_per_multiprocessor(arch, used) >= 1, f"{job} does not fit on sm_{arch}: {used}"
            exact = job.get("dtype") == "float32"
            assert exact or used["mma"] + used["wgmma"] > 0, f"{job} has no matrix instructions: {used}"
            assert used["async_copies"] > 0, f"{job} does not load keys in 16-byte copies: {used}"
    return compiled


SMALL_OPS: list[Job] = [
    {"kernel": "plan"},
    {"kernel": "combine"},
    {"kernel": "ancestor_words"},
    {"kernel": "accept"},
    {"kernel": "kv_commit"},
    {"kernel": "kv_write"},
    {"kernel": "ngram_match"},
    {"kernel": "ngram_match_select"},
    {"kernel": "target_tokens"},
    {"kernel": "target_tokens", "dtype": "float32", "rows": 2048},
    {"kernel": "tree_rejection"},
    {"kernel": "tree_rejection", "replacement": True},
]


def test_hopper_budgets(tmp_path: Path) -> None:
    small, large, *_ = check(
        90,
        [
            {"kernel": "split", "rows": 4},  # 16 packed rows
            {"kernel": "split", "rows": 16},  # 64 packed rows
            {"kernel": "accept"},
            {"kernel": "kv_commit"},
        ],
        tmp_path,
    )
    assert blocks_per_multiprocessor(90, small) >= 3
    assert blocks_per_multiprocessor(90, large) >= 2
    assert large["wgmma"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_kernel(arch: int, tmp_path: Path) -> None:
    jobs: list[Job] = [{"kernel": "split", "rows": rows} for rows in (4, 8, 16, 64)]
    check(arch, [*jobs, *SMALL_OPS], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_long_grid(arch: int, tmp_path: Path) -> None:
    shapes = [{}, {"dim": 64}, {"dim": 80}, {"dim": 112}, {"dim": 256}, {"dim": 192, "value_dim": 128, "group": 1}]
    jobs = [{"kernel": "split", "rows": rows, **shape} for shape, rows in itertools.product(shapes, (1, 4, 8, 16, 64))]
    options: list[Job] = [
        {"page": 16},
        {"page": 4096},
        {"group": 7},
        {"group": 8},
        {"window": 4096},
        {"window": 32},
        {"softcap": True, "sinks": True, "window": 4096},
        {"softcap": True, "sinks": True, "window": 32, "group": 7},
        {"causal": True},
        {"causal": True, "window": 4096},
        {"fixed": True},
        {"node_words": 2},
        {"node_words": 4, "window": 128},
        {"dtype": "float16"},
        {"dtype": "float32"},
        {"pool_dtype": "float8_e5m2" if arch == 80 else "float8_e4m3fn"},
    ]
    jobs += [{"kernel": "split", "rows": rows, **option} for option, rows in itertools.product(options, (4, 16, 64))]
    jobs += [{**job, **more} for job, more in itertools.product(SMALL_OPS[2:4], ({"nodes": 1}, {"nodes": 256}))]
    jobs += [{"kernel": "kv_write", "pool_dtype": "float8_e5m2"}, {"kernel": "kv_commit", "dim": 80, "page": 1}]
    jobs += [{"kernel": "plan", "fixed": True, "window": 512}, {"kernel": "combine", "dim": 80, "sinks": True}]
    jobs += [{"kernel": "ngram_match", "max_n": 8, "matches": 8}]
    jobs += [{"kernel": "ngram_match_select", "candidates": 4096, "matches": 8}]
    check(arch, [*jobs, *SMALL_OPS], tmp_path)
