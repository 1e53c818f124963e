"""A run's folder: whether it holds this run, another, or none yet, and what says so."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from specdec.experiments.read_back import read_json, read_yaml, remake
from specdec.experiments.records import write_text

LIMIT = "measure.time_limit"  # of a start; a run may go on with another


def from_here(path: Path) -> Path:
    """As seen from the present folder where it is inside, else in full."""
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def check_writable(directory: Path) -> None:
    """See that a run's files can be written to `directory`, which need not be there yet; nothing is made.

    Raises:
        ValueError: they cannot.
    """
    there = next(each for each in (directory, *directory.absolute().parents) if os.path.lexists(each))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} {'may not be written to' if there.is_dir() else 'is a file'}"
        raise ValueError(f"the run's folder {directory} cannot be written: {why}; give another hydra.run.dir=")


def look_into(directory: Path, raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """See that `directory` holds this run or none; returns the summary if the run there is finished.

    Raises:
        ValueError: it holds a run with another configuration.
    """
    file = directory / "config.yaml"
    if not file.exists():
        return None
    before = read_yaml(file)
    if different := [d for d in differences(before, raw) if not d.startswith(f"{LIMIT}: ")]:
        raise ValueError(
            f"{directory} holds a run with other settings ({told(different)}); "
            f"go on with its own: specdec run resume={directory}"
        )
    done = directory / "summary.json"
    if not done.exists():
        return None
    summary = read_json(done, remake(directory))
    return summary if summary["complete"] else None


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs, as `name: before -> now`, each at the deepest level that both have. What only one of them has and
    says nothing (null, false, 0, empty) does not: a later version's setting."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        inside = sorted({*before, *now})
        deeper = name + "." * bool(name)
        inside = [key for key in inside if (key in before and key in now) or _says({**before, **now}[key])]
        return [d for key in inside for d in differences(before.get(key), now.get(key), f"{deeper}{key}")]
    return [] if before == now else [f"{name}: {_short(before)} -> {_short(now)}"]


def _says(value: Any) -> bool:
    """Whether a setting is more than null, false, 0, or empty."""
    return any(map(_says, value.values())) if isinstance(value, Mapping) else bool(value)


def told(found: Sequence[str], most: int = 3) -> str:
    """The first few of a list."""
    return ", ".join(found[:most]) + f" and {len(found) - most} more" * (len(found) > most)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def begin(directory: Path, raw: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Make `directory` this run's, if it is not yet."""
    if not (directory / "config.yaml").exists():
        write_text(directory / "overrides.yaml", yaml.safe_dump(list(overrides), allow_unicode=True))
        write_text(directory / "config.yaml", yaml.safe_dump(dict(raw), sort_keys=False, allow_unicode=True))
