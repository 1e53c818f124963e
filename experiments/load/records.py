"""cells.jsonl and requests.jsonl of a run under load: a cell's round is served whole, or again.

The rows of its requests are written first, its own line last: rows of a round without a line, if a kill left any, are
dropped when the directory is opened again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specdec.experiments.records import Row, append_lines, read_lines, write_lines

Key = tuple[str, int]  # a cell's name, a round


class CellRecords:
    """The rows of one directory.

    Attributes:
        cells: by name and round.
        requests: of every round of every cell, in order.

    Raises:
        ValueError: a line other than the last is damaged.
    """

    def __init__(self, directory: Path):
        self._cells, self._requests = directory / "cells.jsonl", directory / "requests.jsonl"
        self.cells: dict[Key, Row] = {(row["cell"], row["round"]): row for row in read_lines(self._cells)}
        self.requests: dict[Key, list[Row]] = {key: [] for key in self.cells}
        for row in read_lines(self._requests):
            if (key := (row["method"], row["repeat"])) in self.requests:
                self.requests[key].append(row)
        if self._cells.exists() or self._requests.exists():
            write_lines(self._requests, [row for rows in self.requests.values() for row in rows])
            write_lines(self._cells, self.cells.values())

    def append(self, cell: Row, requests: Sequence[Row]) -> None:
        """A round of a cell was served."""
        append_lines(self._requests, requests)
        append_lines(self._cells, [cell])
        key = cell["cell"], cell["round"]
        self.cells[key], self.requests[key] = cell, list(requests)
