"""requests.jsonl and steps.jsonl: written as results come, read back when a run goes on."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from specdec.experiments.read_back import no_value

Row = dict[str, Any]
Key = tuple[str, int | str, int, int]  # method, question, turn, repeat


def key_of(row: Row) -> Key:
    """Which request a row is of."""
    return row["method"], row["question_id"], row["turn"], row["repeat"]


class Records:
    """The rows of one directory.

    A request's steps are written before its own row: a request without a row has not ended, and its steps, if a kill
    left any, are dropped when the directory is opened again.

    Args:
        directory: made if it is not there.

    Raises:
        ValueError: a line other than the last is damaged.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._requests, self._steps = directory / "requests.jsonl", directory / "steps.jsonl"
        self.finished: dict[Key, Row] = {key_of(row): row for row in read_lines(self._requests)}
        self.resumed = len(self.finished)
        if self._requests.exists() or self._steps.exists():  # a kill in the first request leaves steps alone
            steps = [row for row in read_lines(self._steps) if key_of(row) in self.finished]
            write_lines(self._steps, steps)
            write_lines(self._requests, self.finished.values())

    def append(self, row: Row, steps: Sequence[Row]) -> None:
        """A request has ended."""
        append_lines(self._steps, steps)
        append_lines(self._requests, [row])
        self.finished[key_of(row)] = row


def read_lines(file: Path) -> list[Row]:
    """Rows of a jsonl file; none if there is no file. A torn last line is left out, and NaN is null.

    Raises:
        ValueError: another line is damaged.
    """
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line, parse_constant=no_value))
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{file}:{number} is damaged ({error}); remove it to run its request again") from None
    return rows


def write_lines(file: Path, rows: Iterable[Row]) -> None:
    """Replace a jsonl file, atomically."""
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(file: Path, text: str) -> None:
    """Replace a file by a text, see `write_bytes`."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Replace a file: a reader finds the old one or the new one, whole, also while others replace it."""
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise of_file(error, file) from None


def append_lines(file: Path, rows: Sequence[Row]) -> None:
    """Write rows behind those of a jsonl file."""
    if rows:
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            raise of_file(error, file) from None


def of_file(error: OSError, file: Path) -> OSError:
    """An error with the file that it is about: the system names none where a disk is full."""
    return OSError(error.errno, error.strerror, str(file))
