"""What a run or a sweep wrote as JSON or YAML, read back: a damaged file is told by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any

import yaml


def read_json(file: Path, cure: str = "") -> dict[str, Any]:
    """A mapping; NaN is null.

    Args:
        cure: what can be done about a damaged one.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    return _read(file, cure, dict, lambda text: json.loads(text, parse_constant=no_value))


def read_yaml(file: Path, kind: type | UnionType = dict, cure: str = "") -> Any:
    """A mapping, or what else `kind` says.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    return _read(file, cure, kind, yaml.safe_load)


def remake(directory: Path) -> str:
    """The cure for what a run writes anew when it goes on: its summary and its provenance."""
    return f"remove it, and specdec run resume={directory} writes it again"


def no_value(constant: str) -> None:
    """What NaN and infinities are in a file, for `json.loads(..., parse_constant=no_value)`."""


def _read(file: Path, cure: str, kind: type | UnionType, parse: Callable[[str], Any]) -> Any:
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())[:200]
    else:
        if isinstance(content, kind):
            return content
        told = f"it holds {type(content).__name__}, expected {getattr(kind, '__name__', kind)}"
    raise ValueError(f"{file} is damaged: {told}" + (f"; {cure}" if cure else ""))
