"""Where a result comes from: written beside it, once per start, atomically."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import specdec
from specdec.experiments.read_back import read_json, remake
from specdec.experiments.records import write_text

ROOT = Path(specdec.__file__).resolve().parent.parent
CPUS = Path("/sys/devices/system/cpu")
SMI = (
    *("index", "name", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu"),
    "driver_version",
)
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "triton", "hydra-core", "omegaconf", "wandb")


def collect(argv: list[str], config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a reader needs to run it again.

    Args:
        argv: the command line.
        config: the resolved configuration.
        data: name, sha256 and count of the prompts, or the sources of a training text.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": {"specdec": specdec.__version__, "python": platform.python_version(), **_versions()},
        "system": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "governor": governor()},
        "gpu": gpus(),
        "clocks": {"cpu": cpu_clocks(), "gpu": gpu_clocks()},
        "threads": torch.get_num_threads(),
        "argv": argv,
        "config": config,
        "data": data,
    }


def write(file: Path, about: Mapping[str, Any]) -> None:
    """Write provenance; what a resumed run began with is kept under `earlier`."""
    earlier: list[dict[str, Any]] = []
    if file.exists():
        before = read_json(file, remake(file.parent))
        earlier = [*before.pop("earlier", []), before]
        for start in earlier:
            start.pop("config", None)  # a run goes on only with the same
    write_text(file, json.dumps({**about, **({"earlier": earlier} if earlier else {})}, indent=2) + "\n")


def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it, results apart; where they do, how many, new ones included, and the
    sha256 of `git diff HEAD`, which new ones are not in. None where specdec is not run from its own repository."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    rest = ("--", ".", ":(exclude)benchmarks/results")
    changed = _git("status", "--porcelain", *rest)
    state: dict[str, Any] = {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}
    if changed:
        diff = _told("git", "-C", str(ROOT), "diff", "HEAD", *rest)
        digest = None if diff is None else hashlib.sha256(diff).hexdigest()
        state |= {"changed": len(changed.splitlines()), "diff_sha256": digest}
    return state


def _git(*args: str) -> str | None:
    told = _told("git", "-C", str(ROOT), *args)
    return None if told is None else told.decode(errors="replace").strip()


def _told(*command: str) -> bytes | None:
    """What a program writes; None where it is not there, fails or hangs."""
    try:
        return subprocess.run(list(command), capture_output=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def governor() -> str | None:
    """What sets the cores' frequency, as `performance`; None where the system does not say."""
    return ", ".join(sorted(set(_of_cores("scaling_governor")))) or None


def cpu_clocks() -> dict[str, Any] | None:
    """Frequencies in MHz that the cores may have, `min` and `max`, and the lowest and highest they have `now`; None
    where the system does not say."""
    lowest, highest, now = (
        [int(value) // 1000 for value in _of_cores(f"scaling_{name}_freq")] for name in ("min", "max", "cur")
    )
    if not (lowest and highest and now):
        return None
    return {"min": min(lowest), "max": max(highest), "now": [min(now), max(now)]}


def _of_cores(name: str) -> list[str]:
    try:
        return [file.read_text().strip() for file in CPUS.glob(f"cpu[0-9]*/cpufreq/{name}")]
    except OSError:
        return []


def gpu_clocks() -> list[dict[str, Any]] | None:
    """What nvidia-smi says of every GPU's clocks (MHz), power (W) and temperature, null where it does not know; None
    where there is no nvidia-smi."""
    told = _told("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits")
    if not told:
        return None
    lines = told.decode(errors="replace").splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    return [{key: _cell(key, cell) for key, cell in zip(SMI, row, strict=False)} for row in rows]


def _cell(key: str, cell: str) -> str | float | None:
    if key in ("name", "driver_version"):
        return cell
    try:
        return float(cell)
    except ValueError:  # [N/A]
        return None


def gpus() -> list[str]:
    """Names of the CUDA devices."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)]


def command_line() -> list[str]:
    """argv without the folder that the command lies in."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
