"""`specdec run trace=...` and `specdec trace DIR`: what is asked for is written, and the measurement is as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from specdec.experiments.cli import main
from specdec.experiments.trace.make import PAGE, RECORD, TIME_LINE
from specdec.experiments.trace.record import read_traces

from ..conftest import QUESTIONS, read_rows

Run = Callable[..., tuple[int, Path]]


def test_every_method_is_traced_and_writes_what_was_measured(
    specdec_run: Run, draft: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["drafter=draft_model", f"drafter.model.name={draft}", "+methods.ngram.drafter=ngram"]
    methods.append("+methods.right.drafter=synthetic")  # is told the text beforehand
    code, directory = specdec_run(*methods, "trace=[html,perfetto]", "sampling=temperature", "measure.steps=false")
    shown = capsys.readouterr()
    assert code == 0, shown.err
    asked = QUESTIONS[0]["question_id"]
    measured = [row for row in read_rows(directory / "requests.jsonl") if row["question_id"] == asked]
    rows = {row["method"]: row for row in measured}
    traces = {trace.method: trace for trace in read_traces(directory / RECORD)}
    summary = json.loads((directory / "summary.json").read_text())
    assert list(traces) == [method["name"] for method in summary["methods"]]
    for name, trace in traces.items():
        assert trace.ids == rows[name]["token_ids"]
        assert trace.prompt == QUESTIONS[0]["turns"][0]
    assert [s.kept for s in traces["right_synthetic"].steps] == rows["right_synthetic"]["accept_lengths"]
    written = [(directory / name).read_text() for name in (PAGE, TIME_LINE)]
    assert all(file in "".join(shown.out.split()) for file in (PAGE, TIME_LINE))

    for name in (PAGE, TIME_LINE):
        (directory / name).unlink()
    assert main(["trace", str(directory)]) == 0
    assert [(directory / name).read_text() for name in (PAGE, TIME_LINE)] == written
    assert capsys.readouterr().out.splitlines() == [f"{directory.name}/{name}" for name in (PAGE, TIME_LINE)]


def test_only_what_was_asked_for_is_written(specdec_run: Run) -> None:
    code, directory = specdec_run("drafter=ngram", "trace=perfetto")
    assert code == 0
    assert (directory / TIME_LINE).exists()
    assert not (directory / PAGE).exists()


def test_nothing_is_traced_unless_asked_for(specdec_run: Run) -> None:
    code, directory = specdec_run("drafter=ngram")
    assert code == 0
    assert not list(directory.glob("trace*"))


@pytest.mark.parametrize("value", ["pdf", "[html,pdf]", "[{a: 1}]", "3", "{a: 1}", "false"])
def test_unknown_kinds(value: str, specdec_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, directory = specdec_run("drafter=ngram", f"trace={value}")
    assert code == 1
    told = capsys.readouterr().err
    assert told.startswith("specdec: trace is ")
    assert told.endswith("; expected html, perfetto, a list of these, or null\n")
    assert not directory.exists()


def test_a_run_without_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"specdec: no {tmp_path / RECORD}; record one with: specdec run ... trace=html\n"
    assert main(["trace"]) == 0
    assert "specdec trace DIR..." in capsys.readouterr().out
