"""A run's folder: what counts as the same run, and what a kill or a time limit leaves in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from specdec.experiments import measure
from specdec.experiments.cli import main
from specdec.experiments.records import Records, read_lines
from specdec.experiments.run_folder import differences, look_into

from .conftest import QUESTIONS

ROW = {"method": "none", "question_id": 1, "turn": 0, "repeat": 0}


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"a": 1}, {"a": 1, "new": None, "empty": [], "off": False, "none": 0}, []),  # what a later version adds
        ({"a": 1, "old": None}, {"a": 1}, []),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": {"d": None}}}, []),
        ({"a": 1}, {"a": 1, "new": 2}, ["new: null -> 2"]),
        ({"a": None}, {"a": 0}, ["a: null -> 0"]),  # both say something
        ({"a": [1]}, {"a": [2]}, ["a: [1] -> [2]"]),
    ],
)
def test_what_differs(before, now, told):
    assert differences(before, now) == told


def test_a_run_goes_on_after_a_setting_was_added(specdec_run, monkeypatch):
    code, directory = specdec_run("drafter=ngram", "data.limit=1")
    assert code == 0
    file = directory / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for added in ("load", "transformers_batch"):
        del config[added]
    del config["measure"]["noise"]
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(measure, "run_cell", None)  # a finished run serves nothing any more
    assert main(["run", "resume=result"]) == 0


def test_another_setting_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("{measure: {repeats: 1, time_limit: 3}}")
    assert look_into(tmp_path, {"measure": {"repeats": 1, "time_limit": None}}) is None
    with pytest.raises(ValueError, match=r"other settings \(measure.repeats: 1 -> 2\)"):
        look_into(tmp_path, {"measure": {"repeats": 2, "time_limit": None}})


def test_a_run_that_a_time_limit_ended_serves_the_rest_without_it(specdec_run, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(clock)))
    code, directory = specdec_run("drafter=ngram", "measure.time_limit=1", "measure.warmup_tokens=0")
    assert code == 0
    assert "measure.time_limit=null serves all" in json.loads((directory / "summary.json").read_text())["notes"][0]
    assert main(["run", "resume=result", "measure.time_limit=null"]) == 0
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["complete"]
    assert summary["questions"] == len(QUESTIONS)


def test_steps_of_a_first_request_that_did_not_end_are_dropped(tmp_path: Path):
    """There is no requests.jsonl yet, and the last line is torn."""
    (tmp_path / "steps.jsonl").write_text(json.dumps(ROW | {"step": 1}) + '\n{"question')
    records = Records(tmp_path)
    assert records.resumed == 0
    records.append(ROW, [ROW | {"step": 1}, ROW | {"step": 2}])
    assert [row["step"] for row in read_lines(tmp_path / "steps.jsonl")] == [1, 2]
    assert Records(tmp_path).resumed == 1
    assert [row["step"] for row in read_lines(tmp_path / "steps.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["measure.warmup_tokens=99999"], "measure.warmup_tokens is 99999, but the target has 160 positions in all"),
        (["stream=99999"], "stream is 99999, but the target has 160 positions in all"),
        (["measure.max_new_tokens=99999"], "measure.max_new_tokens is 99999, but the target has 160"),
        (["~target.name"], "target.name is None; expected"),
        (["target.name=3"], "target.name is 3; expected"),
    ],
)
def test_mistakes_are_called_by_their_names_and_leave_nothing(specdec_run, given, told, capsys):
    code, directory = specdec_run("drafter=ngram", *given)
    shown = capsys.readouterr().err
    assert code == 1
    assert told in shown
    assert not directory.exists()
