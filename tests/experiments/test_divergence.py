"""`specdec run experiment=divergence`: differences counted and told apart, and transformers' own beside them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from specdec.experiments import measure, transformers_batch
from specdec.experiments.lossless import Check
from specdec.experiments.summary import differences_of

from ..models import make_model
from .conftest import QUESTIONS, read_rows

TIE = Check(True, False, 2, 0.01, 0.01, 0.5, True, (5, 6), 0.02)
BUG = Check(True, False, 1, 3.0, 3.5, 0.5, False, (5, 6), 0.02)


def test_rates_are_of_tokens_on_the_same_text():
    checks = [Check(True, True), TIE, BUG, Check(comparable=False)]
    rows = [
        {"question_id": i, "repeat": 0, "turn": 0, "new_tokens": 8, "check": c.as_row()} for i, c in enumerate(checks)
    ]
    rows.append({"question_id": 9, "check": None})  # a baseline's
    found = differences_of(rows)
    assert (found["compared"], found["different"], found["ties"]) == (3, 2, 1)
    assert found["per_thousand_tokens"] == 1000 * 2 / (8 + 3 + 2)
    assert [d["question_id"] for d in found["differences"]] == [2, 1]
    assert found["differences"][1] | {"tokens": (5, 6), "noise": 0.02, "top2_gap": 0.01} == found["differences"][1]


@pytest.mark.parametrize(("check", "word", "code"), [(TIE, "tie", 0), (BUG, "bug", 3)])
def test_ties_and_bugs_are_shown_as_such(specdec_run, monkeypatch, capsys, check, word, code):
    monkeypatch.setattr(measure.lossless, "compare", lambda *_: check)
    ended, directory = specdec_run("drafter=ngram", "transformers_batch=3")
    shown = capsys.readouterr().out
    assert ended == code
    assert "When texts differ" in shown
    assert [line.split()[-1] for line in shown.splitlines() if line.strip().startswith("ngram")][-1] == word
    rows = [row for row in read_rows(directory / "requests.jsonl") if row["check"]]
    assert all(row["check"]["tokens"] == [5, 6] and len(row["check"]["pieces"]) == 2 for row in rows)
    found = json.loads((directory / "summary.json").read_text())["methods"][1]["lossless"]
    assert len(found["differences"]) == found["different"] == len(rows)
    page = (directory / "report.html").read_text()
    assert f'<td class="left">{word}</td>' in page
    assert "transformers, 3 at once" in page


def test_transformers_texts_are_our_plain_ones_alone_and_padded(specdec_run):
    """In float32, where rounding decides none of these tokens."""
    code, directory = specdec_run("drafter=none", "+methods.ngram.drafter=ngram", "transformers_batch=2")
    assert code == 0
    plain = {
        row["question_id"]: row["token_ids"]
        for row in read_rows(directory / "requests.jsonl")
        if row["method"] == "none" and row["turn"] == 0
    }
    rows = read_rows(directory / "transformers.jsonl")
    assert {row["question_id"]: row["token_ids"] for row in rows} == plain
    assert {row["question_id"]: row["token_ids_in_batch"] for row in rows} == plain
    assert [len(row["together"]) for row in rows] == [2, 2, 1]
    theirs = json.loads((directory / "summary.json").read_text())["transformers"]
    assert (theirs["batch"], theirs["compared"], theirs["different"]) == (2, len(QUESTIONS), 0)


def test_a_tie_in_transformers_is_judged_by_its_own_logits():
    logits = torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.01, 0.0]])
    moved = logits + torch.tensor([[0.0, 0.0, 0.0], [0.02, 0.0, 0.0]])
    check = transformers_batch._check(([0, 1], logits), ([0, 0], moved), torch.bfloat16)
    assert (check.position, check.tokens, check.tie) == (1, (1, 0), True)
    assert check.noise == pytest.approx(0.02)
    assert check.gap == check.top2_gap == pytest.approx(0.01)
    far = transformers_batch._check(([0, 1], logits), ([0, 0], moved + torch.tensor([1.0, 0, 0])), torch.bfloat16)
    assert far.tie is False  # logits that move by as much are no rounding


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_model_generates_with_by_default_is_left_out_and_put_back(monkeypatch, fails):
    """Its penalty and its shortest text are not the yardstick's; its end of text is."""
    model, prompts = make_model(), [[5, 6, 7, 5, 6, 7], [9, 8, 7]]
    bench = SimpleNamespace(model=model, device=model.device)
    (free, _), *_ = transformers_batch._decode(bench, prompts, 12)
    end = next(token for i, token in enumerate(free) if i >= 2 and token not in free[:i])
    own = GenerationConfig(repetition_penalty=3.0, min_new_tokens=12, eos_token_id=end)
    model.generation_config = own
    if fails:
        monkeypatch.setattr(type(model), "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            transformers_batch._decode(bench, prompts, 12)
    else:
        found = transformers_batch._decode(bench, prompts, 12)
        assert found[0][0] == free[: free.index(end) + 1]
        assert all(tokens == logits.argmax(-1).tolist() for tokens, logits in found)
    assert model.generation_config is own
    assert own.repetition_penalty == 3.0


def test_a_batch_of_one_is_no_batch(specdec_run, capsys):
    assert specdec_run("drafter=ngram", "transformers_batch=1")[0] == 1
    assert "transformers_batch is 1; expected a number of prompts of at least 2, or null" in capsys.readouterr().err
