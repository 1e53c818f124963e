"""`specdec run from=DIR`: the same texts in another folder, and every way in which they can be others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.experiments import measure
from specdec.experiments.cli import main
from specdec.experiments.report.run_files import read_run
from specdec.experiments.reproduction import compare, sentences

from .conftest import QUESTIONS, read_rows

TURNS = sum(len(question["turns"]) for question in QUESTIONS)
AGAIN = ["run", "from=result", "hydra.run.dir='again'"]


def test_a_finished_run_is_repeated(specdec_run, tmp_path, capsys, monkeypatch):
    """With the settings of its config.yaml; a stopped repeat goes on."""
    code, directory = specdec_run("drafter=ngram", "sampling=temperature", "measure.repeats=2", "data.limit=2")
    assert code == 0
    served, run_cell = [], measure.run_cell

    def stop_at_the_fifth(*args):
        if len(served) == 5:
            raise KeyboardInterrupt
        served.append(args)
        return run_cell(*args)

    monkeypatch.setattr(measure, "run_cell", stop_at_the_fifth)
    assert main(AGAIN) == 130
    assert "specdec run from=result hydra.run.dir=again" in capsys.readouterr().err
    monkeypatch.setattr(measure, "run_cell", run_cell)
    assert main(AGAIN) == 0
    again = tmp_path / "again"
    for name in ("config.yaml", "overrides.yaml"):
        assert (again / name).read_text() == (directory / name).read_text()
    rows = [{row["method"]: row["token_ids"] for row in read_rows(f / "requests.jsonl")} for f in (directory, again)]
    assert rows[0] == rows[1]
    found = json.loads((again / "reproduction.json").read_text())
    assert found["reproduced"]
    assert found["requests"] == len(read_rows(directory / "requests.jsonl"))
    assert found["different_texts"] == found["different_accept_lengths"] == found["one_sided"] == []
    assert {pair["category"] for pair in found["speedups"]} == {None, "code", "data"}
    assert "starts: 1 -> 2" in found["provenance"]
    shown = capsys.readouterr().out
    assert "Reproduced: result" in shown
    assert f"texts: {found['requests']} of {found['requests']} equal" in shown


@pytest.fixture
def finished(specdec_run) -> Path:
    code, directory = specdec_run("drafter=ngram", "data.limit=1")
    assert code == 0
    return directory


def change(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the last request."""
    rows = read_rows(directory / "requests.jsonl")
    edit(rows[-1])
    (directory / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_another_text_is_told_with_its_place(finished, tmp_path, capsys):
    change(finished, lambda row: row["token_ids"].__setitem__(3, -7))
    origin = json.loads((finished / "provenance.json").read_text())
    origin["versions"]["torch"] = "0.1"
    origin["cpu"]["model"] = "an abacus"
    (finished / "provenance.json").write_text(json.dumps(origin))
    capsys.readouterr()
    assert main(AGAIN) == 4
    shown = capsys.readouterr()
    assert "NOT reproduced" in shown.out
    assert "texts: 1 of 2 equal: ngram question 1 turn 0 repeat 0 at new token 3 (-7 -> " in " ".join(shown.out.split())
    assert "was not reproduced" in shown.err
    found = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert [place["position"] for place in found["different_texts"]] == [3]
    assert found["different_accept_lengths"] == []
    told = [line.partition(" -> ")[0] for line in found["provenance"]]
    assert told[:2] == ['cpu.model: "an abacus"', 'versions.torch: "0.1"']


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (lambda row: row["accept_lengths"].append(1), "different_accept_lengths"),
        (lambda row: row["token_ids"].pop(), "different_texts"),
        (lambda row: row.update(repeat=5), "one_sided"),
    ],
    ids=["a step more", "a token less", "another request"],
)
def test_what_is_not_reproduced(finished, edit, kind):
    now = read_run(finished)
    change(finished, edit)
    before = read_run(finished)
    found = compare(before, now)
    assert not found["reproduced"]
    kinds = ("different_texts", "different_accept_lengths", "one_sided")
    assert [name for name in kinds if found[name]] == [kind]
    assert sentences({"from": "x", **found})[0] == "NOT reproduced: x"
    before.summary["complete"] = False  # a time limit may leave requests out, but changes no text
    assert compare(before, now)["reproduced"] == (kind == "one_sided")


@pytest.mark.parametrize(
    ("was", "now", "agree"),
    [
        ((1.2, 1.1, 1.3), (1.25, 1.15, 1.4), True),
        ((1.2, 1.1, 1.3), (1.25, 1.22, 1.4), False),  # the first is not in the second's
        ((1.2, 1.18, 1.22), (1.25, 1.15, 1.4), False),
        ((1.2, None, None), (1.2, 1.1, 1.3), None),
        ((None, None, None), (1.2, 1.1, 1.3), "absent"),
    ],
)
def test_speed_ups_agree_if_each_is_in_the_others_interval(finished, was, now, agree):
    runs = [read_run(finished), read_run(finished)]
    for run, values in zip(runs, (was, now), strict=True):
        run.methods[1]["speedup"] = {**dict(zip(("ratio", "low", "high"), values, strict=True)), "label": ""}
        run.methods[1]["by_category"] = {}
    found = compare(*runs)
    assert [pair["agree"] for pair in found["speedups"]] == ([] if agree == "absent" else [agree])
    assert found["reproduced"]
    shown = [line for line in sentences({"from": "x", **found}) if line.startswith("speed-ups: ")]
    expected = {
        True: "speed-ups: 1 of 1 agree",
        False: "speed-ups: 0 of 1 agree; not: ngram ",
        None: "speed-ups: 1 cell had one prompt and no interval",
    }
    assert len(shown) == (agree != "absent")
    assert all(line.startswith(expected[agree]) for line in shown)
    assert ("ngram 1.20 -> 1.25" in "".join(shown)) == (agree is False)


def test_that_a_run_went_on_is_told_where_accepted_lengths_differ(finished):
    """A drafter that learns from earlier requests may then draft otherwise."""
    now = read_run(finished)
    now.provenance["earlier"] = [{}]
    assert "began anew" not in "".join(sentences({"from": "x", **compare(read_run(finished), now)}))
    change(finished, lambda row: row["accept_lengths"].append(1))
    assert "began anew" in "".join(sentences({"from": "x", **compare(read_run(finished), now)}))
    now.provenance.pop("earlier")
    assert "began anew" not in "".join(sentences({"from": "x", **compare(read_run(finished), now)}))


def test_uncommitted_changes_on_both_sides_are_told(finished):
    runs = [read_run(finished), read_run(finished)]
    for run in runs:
        run.provenance["git"] = {"commit": "abc", "dirty": True}
    assert compare(*runs)["provenance"] == ["git: both had uncommitted changes, which may differ"]
    runs[0].provenance["git"]["dirty"] = False
    found = {"from": "x", **compare(*runs)}
    assert found["provenance"] == ["git.dirty: false -> true"]
    assert sentences(found)[-1] == "commit, versions, machine: git.dirty: false -> true"
    runs[1].provenance["git"]["dirty"] = False
    assert sentences({"from": "x", **compare(*runs)})[-1] == "commit, versions, machine: the same"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["from=nowhere"], "is not the directory of a run"),
        (["from=result", "measure.repeats=2"], "measure.repeats=2 cannot be given with it"),
        (["from=result", "hydra.run.dir=./result"], "are the same folder"),
    ],
)
def test_mistakes(finished, arguments, told, capsys):
    capsys.readouterr()
    assert main(["run", *arguments]) == 1
    assert told in capsys.readouterr().err


def test_an_unfinished_run_is_not_repeated(finished, capsys):
    (finished / "summary.json").unlink()
    assert main(["run", "from=result"]) == 1
    assert "is not finished; go on with: specdec run resume=result" in capsys.readouterr().err
