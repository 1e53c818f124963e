"""What a tracker is, and the guard that keeps a failing one from stopping an experiment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol


class Tracker(Protocol):
    """Takes what a run produces. Called in this order: start, any of the middle ones, finish.

    Attributes:
        wants_images: figures are to be drawn for it.
    """

    wants_images: ClassVar[bool]

    def start(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        """A run begins; its files are in `directory`."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Scalars, after request number `step`."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, as the leaderboard."""

    def histogram(self, name: str, values: Sequence[float], step: int | None = None) -> None:
        """How values are spread: those of request number `step`, or of all."""

    def image(self, name: str, file: Path) -> None:
        """A figure, as a PNG file."""

    def artifact(self, name: str, path: Path) -> None:
        """A file, or a folder with all in it, to be kept with the run."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """The run has ended with these numbers."""


class Guarded:
    """A tracker whose first failure is told in one line, and is its last call."""

    def __init__(self, tracker: Tracker):
        self._tracker: Tracker | None = tracker

    @property
    def wants_images(self) -> bool:
        """Nobody looks at them after a failure."""
        return self._tracker is not None and self._tracker.wants_images

    def images(self, draw: Callable[[], Mapping[str, Path]]) -> None:
        """Figures by name, drawn where they are wanted; the tracker goes on without those that cannot be."""
        if not self.wants_images:
            return
        try:
            files = draw()
        except (Exception, SystemExit) as error:  # no matplotlib, no room: the measurements are worth more
            who = type(self._tracker).__name__.lower()
            print(f"specdec: no figures for the tracker {who}: {_told(error)}", file=sys.stderr)
            return
        for name, file in files.items():
            self.image(name, file)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            if self._tracker is None:
                return
            try:
                getattr(self._tracker, name)(*args, **kwargs)
            except (Exception, SystemExit) as error:  # whatever it is, the measurements are worth more
                who, told = type(self._tracker).__name__.lower(), _told(error)
                print(f"specdec: tracker {who} failed in {name} and is left out from here on: {told}", file=sys.stderr)
                self._tracker = None

        return call


def _told(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
