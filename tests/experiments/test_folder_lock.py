"""Two writers to one folder: the second is turned away, before it has written anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from specdec.experiments.folder_lock import FILE, only_writer
from specdec.experiments.records import write_text

pytest.importorskip("fcntl")
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        with pytest.raises(ValueError, match="is being written by another process"), only_writer(tmp_path):
            pass
        with only_writer(_made(tmp_path / "other")):
            pass
    with only_writer(tmp_path):
        pass


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_mistake_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), only_writer(tmp_path):
        raise KeyboardInterrupt
    with only_writer(tmp_path):
        pass


def test_a_run_leaves_anothers_folder_alone_until_that_is_killed(specdec_run, tmp_path, capsys) -> None:
    folder = _made(tmp_path / "result")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert specdec_run("drafter=ngram")[0] == 1
        assert "is being written by another process" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [FILE]
    finally:
        child.kill()
        child.communicate()
    assert specdec_run("drafter=ngram")[0] == 0


def test_replacing_a_file_uses_no_name_that_another_writer_uses(tmp_path: Path, monkeypatch) -> None:
    """With one name for all, one writer would move the other's half-written file into place."""
    moved: list[str] = []
    monkeypatch.setattr("specdec.experiments.records.os.replace", lambda old, new: moved.append(str(old)))
    for _ in range(2):
        write_text(tmp_path / "report.html", "text")
    assert len(set(moved)) == 2
