"""benchmarks/gpu_day.sh with programs that only write down how they were called."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/usr/bin/env bash
printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
case "$*" in
*get_device_name*) echo a-gpu ;;
*"$FAILS"*) exit 1 ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
printf 'compute-sanitizer ' >>"$CALLS"; printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
"""


def run(folder: Path, fails: str = "nothing", sanitizer: bool = True) -> tuple[int, list[list[str]], str]:
    """Exit status, calls after the first two, and what was printed."""
    programs = {"python": PYTHON, "nvidia-smi": "#!/bin/sh\n"} | ({"compute-sanitizer": SANITIZER} if sanitizer else {})
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "CALLS": str(calls), "FAILS": fails, "HOME": os.environ["HOME"]}
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu_day.sh", folder / "out"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    made = [shlex.split(line) for line in calls.read_text().splitlines()]
    return done.returncode, made[2:], done.stdout + done.stderr


def kinds(calls: list[list[str]]) -> list[str]:
    names = ("compute-sanitizer", "pytest", "kernels", "ops", "step", "machine", "benchmarks/loop.py")
    return [next(name for name in names if name in call) for call in calls]


TIMED = ["kernels", "ops", "step", "machine", "benchmarks/loop.py", "benchmarks/loop.py"]


def test_tests_come_first_and_a_part_that_fails_stops_no_other(tmp_path: Path) -> None:
    status, calls, _ = run(tmp_path, fails="bench ops")
    assert status == 0
    assert kinds(calls) == ["pytest", "pytest", "compute-sanitizer", *TIMED]
    assert {"tests_kernels.log", "memcheck.log", "kernels.log", "loop_captured.log"} <= set(
        os.listdir(tmp_path / "out")
    )


def test_nothing_is_timed_after_kernels_that_failed(tmp_path: Path) -> None:
    status, calls, told = run(tmp_path, fails="not slow", sanitizer=False)
    assert status == 1
    assert kinds(calls) == ["pytest", "pytest"]
    assert "nothing is timed" in told.splitlines()[-1]


def test_hypothesis_that_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    status, calls, told = run(tmp_path, fails="import hypothesis")
    assert status == 1
    assert not calls
    assert [line for line in told.splitlines() if line.startswith("gpu_day.sh: hypothesis is missing")] == [
        told.strip()
    ]


@pytest.mark.slow
def test_what_it_asks_of_pytest_can_be_collected(tmp_path: Path) -> None:
    """With the repository's own addopts: importlib mode among them, without which the tests cannot be imported."""
    _, calls, _ = run(tmp_path)
    asked = [call[call.index("pytest") :] for call in calls if "pytest" in call]
    assert len(asked) == 3
    for arguments in asked:
        done = subprocess.run(
            [sys.executable, "-m", *arguments, "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:]
