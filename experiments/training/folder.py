"""A training's output folder: whose it is, and how far that training has come."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from specdec.experiments.folder_lock import only_writer
from specdec.experiments.read_back import read_yaml
from specdec.experiments.records import write_text
from specdec.experiments.training import checkpoint

FILE = "training.yaml"


@contextmanager
def claimed(output: Path, settings: Mapping[str, Any], free: Collection[str]) -> Iterator[None]:
    """See that `output` holds this training or none, write its settings there, and let no other in meanwhile.

    Args:
        free: settings that may differ when a training goes on.

    Raises:
        ValueError: it holds another, or another process trains there.
    """
    output.mkdir(parents=True, exist_ok=True)
    with only_writer(output):
        file = output / FILE
        if file.exists():
            before = read_yaml(file)
            keys = sorted(k for k in {**before, **settings} if before.get(k) != settings.get(k) and k not in free)
            if keys:
                raise ValueError(
                    f"{output} holds a training with another {', '.join(keys)}; give training.output=... another folder"
                )
        write_text(file, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
        yield


def steps_done(output: Path) -> int:
    """Steps in the newest checkpoint."""
    if not (output / checkpoint.FILE).exists():
        return 0
    with (output / checkpoint.FILE).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return int(json.loads(file.read(size))["__metadata__"]["step"])
