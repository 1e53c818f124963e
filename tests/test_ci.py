"""What .ci/run says in the end, with a `make` that does nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "run"
PYTEST = "== 7 passed in 1.00s =="
MAKE = f"""case $1 in
browser) exit $BROWSER ;;
test) echo "a test"; echo "{PYTEST}"; exit $TEST ;;
esac"""


def closing_lines(folder: Path, browser: int, user: int = 0, test: int = 0) -> tuple[int, list[str]]:
    """Exit status and lines of .ci/run where these are what `make browser`, `id -u` and `make test` give."""
    for name, text in {"make": MAKE, "id": f"echo {user}", "apt-get": "exit 1"}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci")
    known = {"PATH": f"{folder}:{os.environ['PATH']}", "BROWSER": str(browser), "TEST": str(test)}
    ended = subprocess.run(["bash", folder / ".ci" / "run"], env=known, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout.splitlines()


@pytest.mark.parametrize(
    ("browser", "user", "words"),
    [
        (0, 1000, "Browser tests: ran, in a headless Chromium."),
        (2, 1000, "Browser tests: SKIPPED. There is no Chromium, and only root can install one here."),
        (2, 0, "Browser tests: SKIPPED. There is no Chromium, and apt could not install one (no mirror?)."),
    ],
)
def test_it_ends_with_whether_the_browser_tests_ran_and_pytests_line(
    tmp_path: Path, browser: int, user: int, words: str
) -> None:
    assert closing_lines(tmp_path, browser, user)[1][-3:] == ["a test", words, PYTEST]


def test_a_failure_of_the_tests_is_one(tmp_path: Path) -> None:
    code, lines = closing_lines(tmp_path, 2, test=2)
    assert code != 0
    assert lines[-1] == PYTEST
