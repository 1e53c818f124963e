"""transformers as a backend: plain, prompt lookup and assisted, in earnest on small models."""

from __future__ import annotations

import json

import pytest

from ..conftest import read_rows
from ..test_run import TURNS

ASSISTED = "{_target_: specdec.drafters.draft_model.DraftModel, tree: chain, model: %s}"


def test_the_three_ways(specdec_run, target, draft, capsys):
    """Lossless; every token counted once; with the target as its own assistant every draft is accepted."""
    methods = {"plain": "none", "lookup": "ngram", "assisted": ASSISTED % draft, "itself": ASSISTED % target}
    given = [f"+methods.{name}={{drafter: {drafter}, backend: transformers}}" for name, drafter in methods.items()]
    code, directory = specdec_run("drafter=none", "measure.max_new_tokens=24", *given)
    assert code == 0, capsys.readouterr().err
    rows = read_rows(directory / "requests.jsonl")
    assert [row["method"] for row in rows] == ["none", *methods] * TURNS
    for row in rows:
        assert row["new_tokens"] == len(row["token_ids"]) == 24
        assert row["first_tokens"] + sum(row["accept_lengths"]) == row["new_tokens"]
    of = {name: [row for row in rows if row["method"] == name] for name in methods}
    for row in of["plain"]:
        assert (row["first_tokens"], row["accept_lengths"], row["nodes"]) == (1, [1] * 23, 0)
    for row in of["itself"]:
        assert row["accept_lengths"][:-1] == [5] * (row["steps"] - 1)
        assert row["first_tokens"] == 5
    assert sum(row["nodes"] for row in of["lookup"]) > sum(row["accepted"] for row in of["lookup"]) > 0
    entries = {entry["name"]: entry for entry in json.loads((directory / "summary.json").read_text())["methods"]}
    assert {entry["lossless"]["verdict"] for entry in entries.values()} <= {"baseline", "yes"}
    assert entries["itself"]["metrics"]["draft_acceptance_rate"] == pytest.approx(1)
    assert entries["itself"]["metrics"]["peak_memory"] > 0
    assert entries["itself"]["metrics"]["ttft"]["p50"] > 0


def test_sampled_texts_are_not_compared_and_come_again(specdec_run, tmp_path):
    """The seed is the request's; the processors are ours."""
    rows = []
    for folder in ("first", "second"):
        more = ["sampling=temperature", "data.limit=1", f"hydra.run.dir={folder}"]
        code, _ = specdec_run("drafter=ngram", "backend=transformers", *more)
        assert code == 0
        rows.append([row["token_ids"] for row in read_rows(tmp_path / folder / "requests.jsonl")])
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        assert [e["lossless"]["verdict"] for e in summary["methods"]] == ["baseline", "in distribution"]
    assert rows[0] == rows[1]


def test_what_it_cannot_do(specdec_run, capsys):
    given = {
        "transformers has no equivalent of drafter=medusa": ["drafter=medusa"],
        "measure.batch is 2, expected 1": ["drafter=none", "measure.batch=2"],
        "min_ngram is 2, expected 1": ["drafter=ngram", "drafter.min_ngram=2"],
    }
    for told, overrides in given.items():
        assert specdec_run("backend=transformers", *overrides)[0] == 1
        assert told in capsys.readouterr().err
