"""Settings of a benchmark, from name=value."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from specdec.experiments.bench.grid import GRIDS
from specdec.registry import unknown

Made = TypeVar("Made")


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


def from_named(kind: type[Made], arguments: Sequence[str]) -> Made:
    """A dataclass of texts and numbers, all with defaults, from name=value. Numbers are above 0, or 0 where the default
    is.

    Raises:
        ValueError: an unknown name, or a value that does not fit.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in named_values(arguments, list(defaults)).items():
        made, zero = type(defaults[name]), defaults[name] == 0
        try:
            values[name] = made(text)
        except ValueError:
            values[name] = None
        if made is not str and not ((values[name] or 0) > 0 or (zero and values[name] == 0)):
            expected = f"{'whole ' * (made is int)}number above 0{', or 0' * zero}"
            raise ValueError(f"{name}={text}; expected a {expected}")
    return kind(**values)


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
