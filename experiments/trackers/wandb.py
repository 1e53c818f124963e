"""Weights & Biases. It is imported when a run starts, and works without an account: offline unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from specdec.experiments.sweep import is_sweep

MODES = ("offline", "online", "disabled")


class Wandb:
    """See `trackers.base.Tracker`.

    Args:
        project, entity, group, tags: as for `wandb.init`. Without a group, the cells of a sweep are one, called by the
            sweep's folder.
        mode: offline, online or disabled.

    Raises:
        ValueError: the mode is unknown.
    """

    wants_images: ClassVar[bool] = True

    def __init__(
        self,
        project: str = "specdec",
        entity: str | None = None,
        group: str | None = None,
        mode: str = "offline",
        tags: Sequence[str] = (),
    ):
        if mode not in MODES:
            raise ValueError(f"tracker.mode is {mode!r}; expected one of: {', '.join(MODES)}")
        self._mode: Literal["offline", "online", "disabled"] = mode  # type: ignore[assignment]
        self._settings: dict[str, Any] = {"project": project, "entity": entity, "group": group, "tags": list(tags)}

    def start(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        """Files go to `directory`/wandb, from where `wandb sync` uploads them. A resumed run is the same run, by its
        id; a cell of a sweep is called by its folder.
        """
        try:
            import wandb
        except ImportError:
            raise RuntimeError('wandb is not installed: pip install "specdec[experiments]"') from None
        self._wandb = wandb
        os.environ.setdefault("WANDB_SILENT", "true")
        identity = directory / "wandb-run-id.txt"
        if not identity.exists():
            identity.write_text(uuid4().hex[:8])
        place = directory.resolve()
        cell = is_sweep(place.parent)
        self._run = wandb.init(
            dir=str(directory),
            name=place.name if cell else name,
            config=dict(config),
            mode=self._mode,
            id=identity.read_text().strip(),
            resume="allow" if self._mode == "online" else None,
            settings=wandb.Settings(console="off", x_disable_stats=True),
            **(self._settings | ({"group": place.parent.name} if cell and self._settings["group"] is None else {})),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Curves over requests."""
        self._run.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A wandb Table."""
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def histogram(self, name: str, values: Sequence[float], step: int | None = None) -> None:
        """A wandb Histogram: over requests, those with a step."""
        if values:
            self._run.log({name: self._wandb.Histogram(list(values))}, step=step)

    def image(self, name: str, file: Path) -> None:
        """A wandb Image."""
        self._run.log({name: self._wandb.Image(str(file))})

    def artifact(self, name: str, path: Path) -> None:
        """A wandb Artifact of type result. wandb's own files in a folder, and hidden ones, stay out."""
        artifact = self._wandb.Artifact(f"{name}-{self._run.id}", type="result")
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            inside = file.relative_to(path).parts if path.is_dir() else (path.name,)
            if file.is_file() and inside[0] != "wandb" and not inside[-1].startswith("."):
                artifact.add_file(str(file), name="/".join(inside))
        self._run.log_artifact(artifact)

    def finish(self, summary: Mapping[str, float]) -> None:
        """The run's summary, and the end of it."""
        self._run.summary.update(dict(summary))
        self._run.finish()
