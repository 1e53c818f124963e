"""A sweep: a folder of cells, each named by its overrides, and what became of every one of them.

What there is to know of a cell is in the cell's own folder, so a sweep has no state that a kill could tear.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from specdec.experiments.folder_lock import Locked, is_locked
from specdec.experiments.machine_noise import AGAIN, FAILED_CHECK
from specdec.experiments.read_back import read_json, read_yaml, remake
from specdec.experiments.records import write_bytes, write_text
from specdec.experiments.run_folder import LIMIT

SETTINGS, TABLE, ERROR, LOG = "sweep.yaml", "sweep.json", "error.txt", "log.txt"
OVERRIDES, SUMMARY = "overrides.yaml", "summary.json"
Plan = dict[str, list[str]]  # overrides, hydra
SHOWN = 80  # characters of a cell's name before its digest
DONE, FAILED, BEGUN, WAITING, ELSEWHERE = "done", "failed", "unfinished", "not begun", "elsewhere"
LIMITED = "time limit"  # ended by it: there is a speed-up, and more to be served


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table.

    Attributes:
        cell: its folder's name.
        overrides: what it was asked for with.
        status: done, time limit, failed, unfinished, not begun, or elsewhere: another process is at it.
        error: of a failed one, in a line; error.txt has all of it.
        speedup: see `speedup_of`.
        unequal: methods whose losslessness check failed.
    """

    cell: str
    overrides: list[str]
    status: str
    error: str | None = None
    speedup: float | None = None
    unequal: tuple[str, ...] = ()


def name_of(overrides: Sequence[str]) -> str:
    """A cell's folder: its short overrides to be read, and a digest of all of them, in any order; a time limit makes no
    other cell."""
    overrides = [override for override in overrides if override.partition("=")[0] != LIMIT]
    parts = [override.partition("=") for override in overrides]
    short = [f"{key.lstrip('+~').rpartition('.')[2]}-{value}" for key, _, value in parts if "/" not in value]
    words = re.sub(r"[^\w.+-]+", "-", "_".join(short))[:SHOWN]
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    return f"{words}.{digest}" if words else digest


OmegaConf.register_new_resolver("cell", name_of, replace=True)  # for hydra.sweep.subdir in conf/run.yaml


@dataclass(frozen=True, slots=True)
class Begun:
    """The folders that were made for a sweep, the innermost first, and the plans that were there before."""

    made: Sequence[Path]
    before: bytes | None


def begin(folder: Path, overrides: Sequence[str], hydra: Sequence[str]) -> Begun:
    """Write what `specdec run resume=folder` needs: one more plan, unless there is one of the same overrides.

    Args:
        hydra: overrides of Hydra's own settings, as of its launcher.

    Raises:
        ValueError: the folder is a run's.
    """
    if (folder / "config.yaml").exists():
        raise ValueError(f"{folder} holds a run; give the sweep a folder of its own with hydra.sweep.dir=")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file, plan = folder / SETTINGS, {"overrides": list(overrides), "hydra": list(hydra)}
    begun = Begun(made, file.read_bytes() if file.exists() else None)
    plans = plans_of(folder) or []
    same = [_cells_of(each) == _cells_of(plan) for each in plans]
    plans = [plan if is_it else each for each, is_it in zip(plans, same, strict=True)] + [plan] * (not any(same))
    write_text(file, yaml.safe_dump(plans, sort_keys=False, allow_unicode=True))
    return begun


def discard(folder: Path, begun: Begun) -> None:
    """Leave the folder as it was before a sweep that could not begin: no cell of it has a folder yet."""
    if begun.before is not None:
        write_bytes(folder / SETTINGS, begun.before)
    for folder in begun.made:
        if any(inner.is_dir() for inner in folder.iterdir()):
            return
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def is_sweep(folder: Path) -> bool:
    """Whether its folders are cells."""
    return (folder / SETTINGS).is_file()


def plans_of(folder: Path) -> list[Plan] | None:
    """What was asked for of the sweep in `folder`: each time the overrides, and those of Hydra itself; None if there is
    none."""
    if not is_sweep(folder):
        return None
    plans = read_yaml(folder / SETTINGS, list | dict)
    return [plans] if isinstance(plans, dict) else plans  # a sweep of an earlier version has one


def _cells_of(plan: Plan) -> list[str]:
    return sorted(override for override in plan["overrides"] if override.partition("=")[0] != LIMIT)


def run_cell(folder: Path, overrides: Sequence[str], task: Callable[[], dict[str, Any]]) -> float:
    """Do a cell's task unless it is done, and keep what goes wrong in its folder: the other cells go on.

    Args:
        task: runs it, or goes on with it, and returns its summary.

    Returns:
        `speedup_of` its summary, 0 where there is none. It is what a sweeper that searches makes large.
    """
    if is_locked(folder):
        print(f"{folder.name}: another process is at it, left out")
        return 0.0
    try:
        summary = finished(folder)
        if summary is not None and summary["complete"]:
            print(f"{folder.name}: done before")
            return speedup_of(summary) or 0.0
        write_text(folder / OVERRIDES, yaml.safe_dump(list(overrides), allow_unicode=True))
        summary = task()
    except Locked:
        print(f"{folder.name}: another process is at it, left out")
        return 0.0
    except Exception as error:  # whatever it is, the other cells are worth more
        told = " ".join(str(error).split()) or type(error).__name__
        with suppress(OSError):  # a disk that is full: the cell is not done
            write_text(folder / ERROR, f"{told}\n\n{traceback.format_exc()}")
        print(f"specdec: {folder.name} failed: {told}", file=sys.stderr, flush=True)
        return 0.0
    (folder / ERROR).unlink(missing_ok=True)
    print(f"{folder.name}: done", flush=True)
    return speedup_of(summary) or 0.0


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a cell that has come to its end, a time limit's included."""
    if (folder / ERROR).exists() or not (folder / SUMMARY).exists():
        return None
    return read_json(folder / SUMMARY, remake(folder))


def speedup_of(summary: dict[str, Any]) -> float | None:
    """Of the last method that is compared with its baseline, also by a rule that is not lossless; None if its check
    failed: what writes another text is not to be searched for."""
    found = [entry["speedup"] for entry in summary["methods"] if entry["speedup"]]
    ratios = [s["ratio"] if s.get("label") != FAILED_CHECK else None for s in found if s.get("label") != AGAIN]
    return ratios[-1] if ratios else None


def unequal(summary: dict[str, Any]) -> list[str]:
    """Methods whose losslessness check failed."""
    return [entry["name"] for entry in summary["methods"] if entry["lossless"]["verdict"] == "no"]


def cells(folder: Path, planned: Sequence[Sequence[str]]) -> list[Cell]:
    """All cells: those that are planned, in their order, then what else is in the folder."""
    names = {name_of(overrides): list(overrides) for overrides in planned}
    for inner in sorted(folder.iterdir()):
        if inner.name not in names and (inner / OVERRIDES).is_file():
            names[inner.name] = read_yaml(inner / OVERRIDES, list)
    return [_look(folder / name, overrides) for name, overrides in names.items()]


def _look(folder: Path, overrides: list[str]) -> Cell:
    if is_locked(folder):
        return Cell(folder.name, overrides, ELSEWHERE)
    if (folder / ERROR).exists():
        return Cell(folder.name, overrides, FAILED, (folder / ERROR).read_text(encoding="utf-8").partition("\n")[0])
    summary = finished(folder)
    if summary is None:
        return Cell(folder.name, overrides, BEGUN if (folder / OVERRIDES).exists() else WAITING)
    status = DONE if summary["complete"] else LIMITED
    return Cell(folder.name, overrides, status, None, speedup_of(summary), tuple(unequal(summary)))


def write_table(folder: Path, rows: Sequence[Cell]) -> None:
    """sweep.json: a list of cells."""
    write_text(folder / TABLE, json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def shown(rows: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for the terminal: what is the same in all cells is left out, and columns that have nothing."""
    common = set.intersection(*(set(row.overrides) for row in rows)) if len(rows) > 1 else set()
    lines = []
    for row in rows:
        own = " ".join(override for override in row.overrides if override not in common)
        speedup = "" if row.speedup is None else f"{row.speedup:.2f}x"
        note = f"not lossless here: {', '.join(row.unequal)}" if row.unequal else row.error or ""
        lines.append([own, row.status, speedup, note])
    columns = ["cell", "status", "speed-up", "note"]
    kept = [i for i, name in enumerate(columns) if name == "status" or any(line[i] for line in lines)]
    return [columns[i] for i in kept], [[line[i] for i in kept] for line in lines]
