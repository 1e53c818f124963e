"""An engine in another Python: requests and answers as lines of JSON over its stdin and stdout."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

LAST_LINES = 4  # of what a worker wrote to stderr, in an error


class Worker:
    """A script that answers every line it reads with one.

    An answer is an object; one with `error` becomes an exception. What the script writes to stderr is kept in a file
    and shown only where it fails. The script ends when its stdin does, so it never outlives this process.

    Args:
        python: an executable.
        script: what it runs.
        name: for messages.
        environment: variables over those of this process.

    Raises:
        ValueError: it cannot be started.
    """

    def __init__(self, python: str, script: Path, name: str, environment: Mapping[str, str]):
        self._name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **environment},
                text=True,
            )
        except OSError as error:
            self._log.close()
            raise ValueError(f"{name}: {python!r} cannot be started ({error.strerror})") from None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line, wait for the answer.

        Raises:
            ValueError: the worker says that it cannot; or it died, which the end of its stderr explains.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # why is read below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            self._process.kill()
            self._process.wait()
            raise ValueError(f"{self._name} stopped: {self._said() or line.strip() or 'it said nothing'}") from None
        if "error" in answer:
            raise ValueError(f"{self._name}: {answer['error']}")
        return answer

    def _said(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return " ".join(line.strip() for line in lines[-LAST_LINES:])

    def close(self) -> None:
        """End it, politely first."""
        with suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
