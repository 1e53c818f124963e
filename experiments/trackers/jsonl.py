"""Lines in metrics.jsonl: the tracker that needs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar


class Jsonl:
    """See `trackers.base.Tracker`. A line has the key `kind`: start, log, table, histogram, image, artifact, finish."""

    wants_images: ClassVar[bool] = False

    def start(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        """A resumed run goes on in the same file."""
        self._directory, self._file = directory, directory / "metrics.jsonl"
        self._write("start", name=name, config=config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One line."""
        self._write("log", step=step, values=values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """One line."""
        self._write("table", name=name, columns=columns, rows=rows)

    def histogram(self, name: str, values: Sequence[float], step: int | None = None) -> None:
        """The values themselves are in requests.jsonl; here are their counts."""
        counts: dict[float, int] = {}
        for value in values:
            counts[value] = counts.get(value, 0) + 1
        self._write("histogram", name=name, step=step, counts=sorted(counts.items()))

    def image(self, name: str, file: Path) -> None:
        """The file's name."""
        self._write("image", name=name, file=file.name)

    def artifact(self, name: str, path: Path) -> None:
        """Its name."""
        self._write("artifact", name=name, path=path.name)

    def finish(self, summary: Mapping[str, float]) -> None:
        """One line."""
        self._write("finish", summary=summary)

    def _write(self, kind: str, **row: Any) -> None:
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"kind": kind, **row}, default=str) + "\n")
