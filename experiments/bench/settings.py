"""Settings of a benchmark, from name=value."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from specdec.experiments.bench.grid import GRIDS
from specdec.loading import unknown


@dataclass(frozen=True)
class Settings:
    """Of a run."""

    grid: str
    minutes: float
    output: Path
    device: str
    again: bool = False
    seconds: float = 0.5  # of timing a cell


def read_settings(arguments: Sequence[str], part: str) -> Settings:
    """Settings from name=value.

    Raises:
        ValueError: an unknown name, or a value that does not fit.
    """
    given = named_values(arguments, [field.name for field in dataclasses.fields(Settings)])
    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device={device} is not there; expected cpu{', cuda' * torch.cuda.is_available()}")
    grid = given.get("grid", "cpu" if device == "cpu" else "small")
    if grid not in GRIDS:
        raise unknown("grid", grid, GRIDS)
    if (grid == "cpu") != (device == "cpu"):
        raise ValueError(
            f"grid={grid} is not for device={device}; expected grid={'cpu' if device == 'cpu' else 'small'}"
        )
    if (again := given.get("again", "false")) not in ("true", "false"):
        raise ValueError(f"again={again}; expected true or false")
    output = Path(given.get("output", f"outputs/bench/{part}_{device}.json"))
    return Settings(
        grid, _positive(given, "minutes", 60.0), output, device, again == "true", _positive(given, "seconds", 0.5)
    )


def named_values(arguments: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """name=value to a mapping.

    Raises:
        ValueError: an argument is something else, or has an unknown name.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is no setting; expected name=value, see: specdec bench")
        if name not in known:
            raise unknown("setting of bench", name, known)
        given[name] = value
    return given


def _positive(given: Mapping[str, str], name: str, default: float) -> float:
    try:
        value = float(given.get(name, default))
    except ValueError:
        value = -1.0
    if not value > 0:
        raise ValueError(f"{name}={given[name]}; expected a number above 0")
    return value
