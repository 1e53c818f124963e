"""Where a result comes from: written beside it, once per start, atomically."""

from __future__ import annotations

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
from specdec.experiments.records import write_text

ROOT = Path(specdec.__file__).resolve().parent.parent
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
        "cpu": {"model": cpu_model(), "cores": os.cpu_count()},
        "gpu": gpus(),
        "threads": torch.get_num_threads(),
        "argv": argv,
        "config": config,
        "data": data,
    }


def write(file: Path, about: Mapping[str, Any]) -> None:
    """Write provenance; what a resumed run began with is kept under `earlier`."""
    earlier: list[dict[str, Any]] = []
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        earlier = [*before.pop("earlier", []), before]
        for start in earlier:
            start.pop("config", None)  # a run goes on only with the same
    write_text(file, json.dumps({**about, **({"earlier": earlier} if earlier else {})}, indent=2) + "\n")


def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it, results apart; None where specdec is not run from its own repository."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


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


def gpus() -> list[str]:
    """Names of the CUDA devices."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)]


def command_line() -> list[str]:
    """argv without the folder that the command lies in."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
