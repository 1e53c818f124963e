"""vLLM as a backend, with a stand-in for it: the protocol, the counts, the check, and what is told where it fails."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import specdec
from specdec import loading

from ..conftest import QUESTIONS, read_rows
from .conftest import opened

TOKENS = 8  # as `specdec_run` asks for
CHAIN = "{_target_: specdec.drafters.ngram.NGram, length: 3, continuations: 1}"


@pytest.fixture
def table(target: Path) -> list[tuple[list[int], list[int]]]:
    """The target's own text of the first question."""
    model, tokenizer = loading.load_model(str(target)), loading.load_tokenizer(str(target))
    ids = tokenizer(QUESTIONS[0]["turns"][0])["input_ids"]
    out = specdec.generate(model, torch.tensor([ids]), drafter="none", max_new_tokens=TOKENS)
    return [(ids, out.sequences[0, len(ids) :].tolist())]


def method(name: str, drafter: str, python: Path, more: str = "") -> str:
    backend = f"{{_target_: specdec.experiments.engines.vllm_engine.VLLM, python: {python}, settings: {{{more}}}}}"
    return f"+methods.{name}={{drafter: {drafter}, backend: {backend}}}"


def run(specdec_run, *overrides: str) -> tuple[int, list[dict], dict]:
    code, directory = specdec_run("drafter=none", "data.limit=1", *overrides)
    summary = json.loads((directory / "summary.json").read_text())
    return code, read_rows(directory / "requests.jsonl"), summary


def test_methods_on_vllm_are_counted_as_ours(specdec_run, stand_in, table, draft, capsys):
    """By turns with ours; tokens, steps and acceptance by our definitions; checked against our baseline's text."""
    python = stand_in(table)
    model = f"{{_target_: specdec.drafters.draft_model.DraftModel, model: {draft}, tree: chain}}"
    wanted = [method("plain", "none", python), method("ngram", CHAIN, python), method("draft", model, python)]
    code, rows, summary = run(specdec_run, *wanted, "measure.repeats=2")
    assert code == 0, capsys.readouterr().err
    assert [row["method"] for row in rows] == ["none", "plain", "ngram", "draft"] * 2
    plain, ngram = rows[1], rows[2]
    assert plain["token_ids"] == ngram["token_ids"] == table[0][1]
    assert plain["accept_lengths"] == [1] * 7
    assert (plain["nodes"], plain["accepted"], plain["forwards"]) == (0, 0, 7)
    # 1 token of the prefill, then 3, 3, and 1 of the last 3: cut at the limit, accepted all the same
    assert ngram["accept_lengths"] == [3, 3, 1]
    assert (ngram["new_tokens"], ngram["steps"], ngram["forwards"]) == (8, 3, 3)
    assert (ngram["nodes"], ngram["proposed_depth"], ngram["accepted"]) == (9, 9, 6)
    assert (ngram["offered_by_depth"], ngram["accepted_by_depth"]) == ([3, 3, 3], [3, 3])
    assert set(ngram["phases"]) == {"prefill", "undivided"}
    assert ngram["seconds"] == pytest.approx(sum(ngram["phases"].values()))
    assert 0 < ngram["ttft"] < ngram["seconds"]
    entries = {entry["name"]: entry for entry in summary["methods"]}
    assert [e["lossless"]["verdict"] for e in entries.values()] == ["baseline", "yes", "yes", "yes"]
    found = entries["ngram"]["metrics"]
    assert found["mean_accepted_length_pooled"] == pytest.approx(7 / 3)
    assert found["draft_acceptance_rate"] == pytest.approx(2 / 3)
    assert set(found["phase_share"].values()) == {None}
    assert found["peak_memory"] is None
    assert (entries["none"]["backend"], entries["ngram"]["backend"]) == (None, "vllm")
    assert "-/-/-/-" in capsys.readouterr().out
    settings = opened(python)
    assert len(settings) == 3
    lookup = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
    assert [s.get("speculative_config") for s in settings[:2]] == [None, lookup]
    assert settings[2]["speculative_config"]["num_speculative_tokens"] == 4
    assert not Path(settings[2]["speculative_config"]["model"]).exists()  # exported for it, and gone with it
    versions = json.loads(Path("result/provenance.json").read_text())["versions"]
    assert versions["vllm"] == "0.0-stand-in"


def test_a_text_that_is_not_the_baselines_fails_the_check(specdec_run, stand_in, table):
    ids, text = table[0]
    code, _, summary = run(specdec_run, method("ngram", CHAIN, stand_in([(ids, [(t + 1) % 50 for t in text])])))
    assert code == 3
    assert summary["methods"][1]["lossless"]["verdict"] == "no"


def test_what_vllm_does_not_tell_is_absent(specdec_run, stand_in, table):
    code, rows, summary = run(specdec_run, method("ngram", CHAIN, stand_in(table, told=False)))
    assert code == 0
    assert (rows[1]["nodes"], rows[1]["accepted"], rows[1]["accepted_by_depth"]) == (None, None, [])
    found = summary["methods"][1]["metrics"]
    assert found["mean_accepted_length_pooled"] == pytest.approx(7 / 3)
    assert found["draft_acceptance_rate"] is found["node_acceptance_rate"] is found["model_flops"] is None


def test_passes_that_found_no_draft_leave_sums_and_no_order(specdec_run, stand_in, table):
    """vLLM says what was drafted only of passes that drafted, and not which these were."""
    code, rows, summary = run(specdec_run, method("ngram", CHAIN, stand_in(table, misses=(1,))))
    assert code == 0
    row = rows[1]
    assert row["accept_lengths"] == [1, 3, 3]
    assert (row["nodes"], row["proposed_depth"], row["accepted"]) == (6, 6, 4)
    assert (row["offered_by_depth"], row["accepted_by_depth"]) == ([2, 2, 2], [2, 2])
    assert row["children"] == row["ranks"] == []
    steps = [step for step in read_rows(Path("result/steps.jsonl")) if step["method"] == "ngram"]
    assert [(s["emitted"], s["nodes"], s["children"], s["ranks"]) for s in steps] == [
        (1, None, None, None),
        (3, None, None, None),
        (3, None, None, None),
    ]
    assert summary["methods"][1]["accepted_by"] is None
    assert summary["methods"][1]["metrics"]["draft_acceptance_rate"] == pytest.approx(2 / 3)


def test_requests_together(specdec_run, stand_in, table, tmp_path):
    """Two questions in one call; a pass counts once."""
    file = tmp_path / "same.jsonl"
    file.write_text("".join(json.dumps(QUESTIONS[0] | {"question_id": i}) + "\n" for i in range(2)))
    more = ["measure.batch=2", f"data.path={file}", "data.limit=2"]
    code, rows, _ = run(specdec_run, method("ngram", CHAIN, stand_in(table)), *more)
    assert code == 0
    mine = [row for row in rows if row["method"] == "ngram"]
    assert [(row["together"], row["forwards"], row["accepted"]) for row in mine] == [([0, 1], 1.5, 6)] * 2


def test_mistakes_are_told_in_one_line(specdec_run, stand_in, table, tmp_path, capsys):
    python = stand_in(table)
    given = {
        "vLLM has no equivalent of drafter=suffix; it has: none, ngram": [method("m", "suffix", python)],
        "vLLM ignores min_p where it drafts": [method("m", CHAIN, python), "sampling=nucleus", "sampling.min_p=0.1"],
        "judges drafts by its own lossless rule": [method("m", CHAIN, python), "acceptance=typical"],
        "m: vLLM: RuntimeError: no such setting": [method("m", CHAIN, python, "fail: true")],
        "cannot be started (No such file": [method("m", CHAIN, tmp_path / "nowhere")],
        "needs vLLM, and backend.python=/bin/false has none": [method("m", CHAIN, Path("/bin/false"))],
        "methods.m.backend names no other engine": ["+methods.m={drafter: none, backend: naive}"],
        "unknown setting of backend": [
            "+backend@methods.m.backend=vllm",
            "+methods.m.backend.pyton=x",
            "+methods.m.drafter=none",
        ],
    }
    for told, overrides in given.items():
        code, directory = specdec_run("drafter=none", "data.limit=1", *overrides)
        assert code == 1, told
        assert told in capsys.readouterr().err
        assert not directory.exists(), told


def test_a_process_that_dies_is_told(specdec_run, stand_in, table, capsys):
    code, _ = specdec_run("drafter=none", "data.limit=1", method("m", CHAIN, stand_in(table)), "sampling.seed=666")
    assert code == 1
    assert "vLLM stopped" in capsys.readouterr().err


def test_backend_vllm_runs_the_chosen_drafter(specdec_run, stand_in, table, capsys):
    """Without `methods`; ours is the baseline; trees become chains, and a note says so."""
    python = stand_in(table)
    code, rows, summary = run(specdec_run, "drafter=ngram", "backend=vllm", f"backend.python={python}", "trace=html")
    assert code == 0, capsys.readouterr().err
    assert [row["method"] for row in rows] == ["none", "vllm_ngram"]
    told = "vllm_ngram: vLLM drafts chains: one of up to 8 tokens in place of 2 continuations"
    assert told in summary["notes"]
    assert os.path.exists("result/trace.html")
