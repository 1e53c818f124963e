"""A full disk, an impossible folder, damaged files: one line that says which, and nothing that was written is lost."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from specdec.experiments import sweep
from specdec.experiments.cli import main
from specdec.experiments.read_back import read_json, read_yaml
from specdec.experiments.records import read_lines, write_text

from .conftest import read_rows
from .test_cli import one_line

Run = Callable[..., tuple[int, Path]]


@contextmanager
def no_file_longer_than(count: int) -> Iterator[None]:
    """To the program it is a full disk: a write fails after some of its bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("count", "file"),
    [(0, "overrides.yaml"), (400, "config.yaml"), (6000, "steps.jsonl")],
    ids=lambda value: str(value),
)
def test_a_run_on_a_full_disk_says_so_and_goes_on(count: int, file: str, specdec_run: Run, capsys):
    with no_file_longer_than(count):
        code, directory = specdec_run("drafter=ngram", "tracker=noop")
    told = one_line(capsys, code)
    assert f"File too large: result/{file}" in told
    before = read_lines(directory / "requests.jsonl")
    if count:
        assert "go on with: specdec run resume=result" in told
        assert main(["run", "resume=result"]) == 0
        assert read_rows(directory / "requests.jsonl")[: len(before)] == before
        assert (directory / "report.html").exists()
    assert bool(before) == (file == "steps.jsonl")
    assert not list(directory.glob("*.tmp"))


def test_a_folder_that_cannot_be(specdec_run: Run, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    told = f"the run's folder file/inside cannot be written: {tmp_path / 'file'} is a file; give another hydra.run.dir="
    assert told in one_line(capsys, specdec_run("hydra.run.dir=file/inside")[0])
    assert "file/inside" in one_line(capsys, specdec_run("-m", "hydra.sweep.dir=file/inside")[0])


@pytest.mark.parametrize(
    "content", [b"", b'{"a": [1, ', b"\xff\xfe\x00", b"1"], ids=["empty", "torn", "binary", "other"]
)
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_damaged_file_has_a_name_and_a_cure(content: bytes, read: Callable[..., object], tmp_path: Path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"/file is damaged: .+; call a doctor$"):
        read(tmp_path / "file", cure="call a doctor")


def test_damaged_files_of_a_run_are_named(specdec_run: Run, capsys):
    """What can be written again is, once it is removed; the requests stay as they are."""
    _, directory = specdec_run("drafter=ngram", "data.limit=1", "tracker=noop")
    capsys.readouterr()
    rows = (directory / "requests.jsonl").read_bytes()
    for name in ("config.yaml", "overrides.yaml", "summary.json", "provenance.json"):
        file = directory / name
        whole = file.read_bytes()
        file.write_bytes(b'{"a": [1, ')
        if name == "provenance.json":  # which a finished run does not look at
            (directory / "summary.json").unlink()
        told = one_line(capsys, main(["run", "resume=result"]))
        assert f"result/{name} is damaged" in told
        if name.endswith("json"):
            assert "remove it, and specdec run resume=result writes it again" in told
            file.unlink()
            assert main(["run", "resume=result"]) == 0
            assert file.exists()
            capsys.readouterr()
        else:
            file.write_bytes(whole)
    assert (directory / "requests.jsonl").read_bytes() == rows


def test_a_report_names_a_damaged_file(specdec_run: Run, capsys):
    _, directory = specdec_run("drafter=ngram", "data.limit=1", "tracker=noop")
    capsys.readouterr()
    for name in ("config.yaml", "provenance.json", "summary.json"):
        whole = (directory / name).read_bytes()
        (directory / name).write_text("{")
        assert f"result/{name} is damaged" in one_line(capsys, main(["report", "result"]))
        (directory / name).write_bytes(whole)


def test_a_damaged_cell_fails_alone(tmp_path: Path):
    write_text(tmp_path / "summary.json", '{"methods": [')
    assert sweep.run_cell(tmp_path, ["a=1"], dict) == 0
    assert "summary.json is damaged" in (tmp_path / sweep.ERROR).read_text()


def test_a_cell_whose_error_cannot_be_kept_stops_no_other(tmp_path: Path, capsys):
    with no_file_longer_than(0):
        assert sweep.run_cell(tmp_path, ["a=1"], dict) == 0
    assert "File too large" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_values_that_json_has_no_words_for_are_null(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"a": NaN, "b": [Infinity, -Infinity, 1.5]}\n{"a": 1')
    assert read_lines(tmp_path / "rows.jsonl") == [{"a": None, "b": [None, None, 1.5]}]
