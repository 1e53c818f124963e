"""`specdec bench accepted`: plain texts, every rule on the same drafts, and the ratios."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specdec import noise
from specdec.acceptance.block import Block
from specdec.acceptance.rejection import Rejection
from specdec.drafters.draft_model import DraftModel
from specdec.engine import Engine, serve
from specdec.experiments.bench import accepted
from specdec.experiments.cli import main
from specdec.experiments.data import load_questions
from specdec.request import Request
from specdec.sampling import Sampler, SamplingParams
from specdec.tree.static import chain

from ..acceptance.exact import accepted_length
from ..models import make_model, noisy_copy

WARM = SamplingParams(temperature=1.0, seed=5)
PROMPT = [5, 6, 7, 5]


class Both:
    """A rule that keeps what it is given."""

    lossless, shared_noise = True, False

    def __init__(self) -> None:
        self.trees: list[Any] = []

    def __call__(self, tree: Any, logits: Any, sampling: Any) -> Any:
        self.trees.append((tree, logits))
        return Rejection()(tree, logits, sampling)


def judged_by(count: int, model: PreTrainedModel, rules: dict[str, Any]) -> accepted.Judged:
    judged = accepted.Judged(rules, Sampler(count, model.config.vocab_size, model.device))
    judged.begin(0, 1.0)
    return judged


def test_texts_are_plain_and_every_place_is_judged() -> None:
    model = make_model(dtype=torch.float64)
    plain = serve(Engine(model, "none", None, "coupled"), [Request(PROMPT, 12, WARM)])[0]
    keeps: Any = Both()
    judged = judged_by(3, model, {"one": keeps, "other": Rejection()})
    engine = Engine(model, DraftModel(noisy_copy(model), chain(3)), None, judged)
    assert serve(engine, [Request(PROMPT, 12, WARM)])[0] == plain
    assert len(judged.accepted["one"]) == len(judged.accepted["other"]) == 11  # the first comes of the prefill
    assert judged.accepted["one"] == judged.accepted["other"], "the same rule, with the same noise on the same drafts"
    assert [int(tree.tokens[0, 0]) for tree, _ in keeps.trees] == plain[0][:-1]
    assert all(tree.batch_size == 3 and torch.equal(tree.tokens[0], tree.tokens[2]) for tree, _ in keeps.trees)


def test_the_mean_is_what_enumeration_says() -> None:
    """Of one tree, judged often: 4000 judgements are within 5 standard errors of the exact mean, of at most 0.024."""
    model, count = make_model(vocab_size=9, dtype=torch.float64, initializer_range=0.15), 4000
    keeps: Any = Both()
    judged = judged_by(count, model, {"block": Block(), "keeps": keeps})
    engine = Engine(model, DraftModel(noisy_copy(model, 0.3), chain(3)), None, judged)
    serve(engine, [Request([3, 1, 4], 2, WARM)])
    tree, logits = keeps.trees[0]
    one = type(tree)(tree.tokens[:1], tree.parents[:1], tree.sizes[:1], tree.draft_probs[:1].double())

    def target(text: tuple[int, ...]) -> torch.Tensor:
        """Asked for every node of the chain in order."""
        return torch.as_tensor(logits[0, len(text)].double().softmax(-1))

    wanted = 1 + accepted_length(Block(), [(1.0, one)], target)
    assert judged.accepted["block"][0] / count == pytest.approx(wanted, abs=0.12)


def test_no_two_judgements_share_noise(target: Path, draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two texts of the same question, whose places are the same, and of a text's judges."""
    questions = load_questions(limit=1)
    twice = dataclasses.replace(questions, items=questions.items * 2)
    monkeypatch.setattr(accepted, "load_questions", lambda limit: twice)
    seeds: dict[int, list[tuple[int, ...]]] = {}
    judge = Rejection.__call__

    def keep(self: Rejection, tree: Any, logits: Any, sampling: Any) -> Any:
        if tree.max_nodes == 5:  # of the chain of 4
            keys = sampling.keys(noise.ACCEPT_STREAM, 0).T.tolist()
            seeds.setdefault(int(sampling.positions[0]), []).extend(map(tuple, keys))
        return judge(self, tree, logits, sampling)

    monkeypatch.setattr(Rejection, "__call__", keep)
    accepted.measure_accepted(accepted.Settings(str(target), str(draft), prompts=2, tokens=5, judges=3, device="cpu"))
    assert len(seeds) == 4, "places of a text, of which the first comes of the prefill"
    assert all(len(each) == len(set(each)) == 2 * 3 for each in seeds.values())


def test_ratios_are_of_the_means_over_prompts() -> None:
    counts = accepted.Counts({"rejection": [(10, 10.0), (30, 10.0)], "block": [(12, 10.0), (36, 10.0)]})
    row = counts.row("chain of 4", "block")
    assert row["mean_accepted_length"] == {"rejection": 2.0, "block": 2.4}
    assert (row["ratio"], row["low"], row["high"]) == (1.2, 1.2, 1.2)
    assert (row["prompts"], row["judgements"]) == (2, 20)


def test_the_command(target: Path, draft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made" / "accepted.json"
    settings = [f"target={target}", f"draft={draft}", "prompts=2", "tokens=4", "judges=2", f"output={file}"]
    assert main(["bench", "accepted", *settings]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == {"output": str(file), "rows": 4}
    measured = json.loads(file.read_text())
    assert [row["drafts"] for row in measured["rows"]] == list(accepted.drafts())
    for row in measured["rows"]:
        assert row["judgements"] == 2 * 3 * 2
        assert row["low"] <= row["ratio"] <= row["high"]
        assert all(1 <= mean <= 10 for mean in row["mean_accepted_length"].values())
    assert main(["bench", "accepted", f"target={target}", f"draft={draft}", "prompts=1000"]) != 0
    assert "prompts=1000; there are 100" in capsys.readouterr().err
