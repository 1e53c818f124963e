"""What in the settings of a folder can run code. A folder may be another lab's, so that such a setting is taken from it
only where it is given again on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = re.compile(r"allow_targets|trust_remote_code|\bpython\b\s*[=:]|\bsettings\b|\$\{")
UNSAFE = "_target_|setup|python|args|parameters|env"  # of a launcher: commands, and where processes start
HARMLESS = re.compile(rf"[+~]*hydra(/(launcher|sweeper)=|\.(launcher|sweeper)\.(?!.*({UNSAFE})))")
ANY_HYDRA = re.compile(r"[+~]*hydra\b")


def runs_code(config: Any, name: str = "") -> dict[str, Any]:
    """Settings of a resolved configuration that make it run what is no part of specdec, by their full names:
    `allow_targets`, every `trust_remote_code`, and another engine's `python` and `settings`."""
    found: dict[str, Any] = {}
    if isinstance(config, Mapping | list):
        parts = config.items() if isinstance(config, Mapping) else enumerate(config)
        for key, value in parts:
            inner = f"{name}.{key}" if name else str(key)
            if value and key in ("allow_targets", "trust_remote_code", "python", "settings"):
                found[inner] = value
            else:
                found |= runs_code(value, inner)
    return found


def told_to_run(overrides: Sequence[str]) -> list[str]:
    """Those of a folder's overrides by which code could be run that is no part of specdec, or of Hydra's launchers and
    sweepers. An interpolation could spell any of them."""
    return [o for o in overrides if WORDS.search(o) or (ANY_HYDRA.match(o) and not HARMLESS.match(o))]


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """As they are given on the command line."""
    return [f"{key}={_value(value)}" for key, value in settings.items()]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def refuse(source: str, folder: Path, overrides: Sequence[str]) -> None:
    """Refuse what a folder's settings would run.

    Args:
        source: from or resume.

    Raises:
        ValueError: there is something.
    """
    if overrides:
        quoted = " ".join(f"'{override}'" for override in overrides)
        raise ValueError(
            f"{source}: the settings in {str(folder)!r} can run code: {', '.join(overrides)}. If you trust whoever "
            f"wrote them, give them again: specdec run {source}={folder} {quoted}"
        )
