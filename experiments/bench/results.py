"""Result files: with provenance, the machine, one entry a cell, written as cells end (`Results`; a killed run keeps its
cells), or written at the end (`write`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from specdec.experiments import provenance
from specdec.experiments.records import write_text

Json = dict[str, Any]


class Results:
    """One file, opened to go on with it.

    Args:
        file: made with its folder when the first cell ends.
        settings: of the command; they go into the provenance.
        device: that is measured.
        again: begin anew whatever is there.

    Raises:
        ValueError: the file holds something else, or cells of other code or another machine.
    """

    def __init__(self, file: Path, settings: Json, device: torch.device, again: bool = False):
        self.file = file
        about = provenance.collect(provenance.command_line(), settings, {})
        self.content: Json = {"provenance": about, "machine": {}, "cells": {}}
        if file.exists() and not again:
            before = load(file)
            if _code(before["provenance"]) != _code(about):
                raise ValueError(
                    f"{str(file)!r} holds cells of other code or another machine: {_code(before['provenance'])}, now "
                    f"{_code(about)}; give again=true to measure anew, or another output="
                )
            self.content = before
        self.content["machine"].setdefault("device", device.type)

    @property
    def cells(self) -> dict[str, Json]:
        """Entries by the cell's key."""
        cells: dict[str, Json] = self.content["cells"]
        return cells

    @property
    def machine(self) -> Json:
        """The device, and its rates as measured at the latest start; `earlier` has those of the starts before."""
        machine: Json = self.content["machine"]
        return machine

    def start(self, rates: Mapping[str, float]) -> None:
        """What has been measured at this start."""
        machine = self.machine
        if before := {name: machine[name] for name in rates if name in machine}:
            machine["earlier"] = [*machine.get("earlier", []), before]
        machine.update(rates)

    def add(self, key: str, entry: Json) -> None:
        """A cell has ended."""
        self.cells[key] = entry
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(self.content, indent=1) + "\n")


def origin(settings: Any) -> Json:
    """The provenance of what is measured with `settings`, a dataclass."""
    return provenance.collect(provenance.command_line(), dataclasses.asdict(settings), {})


def write(measured: Json, file: Path) -> None:
    """A line for every entry, so that people can read it, too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in measured.items())
    write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")


def load(file: Path) -> Json:
    """A result file.

    Raises:
        ValueError: it is not one.
    """
    try:
        content: Json = json.loads(file.read_text(encoding="utf-8"))
        content["provenance"], content["machine"], content["cells"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is not a result of `specdec bench`: {type(error).__name__} {error}") from error
    return content


def _code(about: Json) -> str:
    """What must be the same for cells of one file: the commit, changes since, torch, and what it runs on."""
    git = about["git"] or {}
    commit = (git.get("commit") or "no commit")[:12] + " and changes" * bool(git.get("dirty"))
    on = ", ".join(about["gpu"]) or about["cpu"]["model"]
    return f"commit {commit}, torch {about['versions']['torch']}, {on}"
