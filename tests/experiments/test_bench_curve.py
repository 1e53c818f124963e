"""`specdec bench curve`: ratios within a round, the drafter's part, what each rank is right, and the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.drafters.draft_model import DraftModel
from specdec.engine import Engine, serve
from specdec.experiments.bench import curve
from specdec.experiments.bench.plot import cost_curve
from specdec.experiments.bench.ranks import OneToken, acceptance_by_rank, takes_trees
from specdec.experiments.cli import main
from specdec.registry import build, read_yaml
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.tree.cost import CostCurve, sequences_curve
from specdec.tree.static import StaticTree

from ..models import make_model, noisy_copy, plain_text

VOCAB = 40
PROMPTS = [[5, 6, 7, 5, 6], [1], [2, 3, 2, 3, 2, 3, 2]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "NODES", (1, 2, 5))
    monkeypatch.setattr(curve, "SEQUENCES", (1, 2))
    monkeypatch.setattr(curve, "STEPS", 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("batch", [1, 3])
def test_the_command_writes_what_policies_read(
    batch: int, target: Path, draft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made" / "curve.json"
    settings = [f"target={target}", f"drafter={draft}", f"batch={batch}", "context=40", f"output={file}"]
    assert main(["bench", "curve", *settings, "seconds=0.1", "prompts=3", "tokens=6", "ranks=3"]) == 0
    out = capsys.readouterr().out
    assert "cost of a step over plain decoding" in out
    assert json.loads(out.splitlines()[-1])["output"] == str(file)
    measured = json.loads(file.read_text())
    assert measured["nodes"] == [1, 2, 5]
    assert measured["cost"][0] == measured["p20"][0] == 1.0
    spread = zip(measured["p20"], measured["cost"], measured["p80"], strict=True)
    assert all(low <= middle <= high for low, middle, high in spread)
    assert measured["sequences"] == [1, 2]
    assert min(measured["sequences_cost"]) > 0
    assert (measured["sequences_cost"][0] == 1.0) == (batch == 1)
    assert measured["draft_cost"] > 0
    assert measured["levels"] == 4
    assert len(measured["acceptance"]) == 3
    assert 0 <= sum(measured["acceptance"]) <= 1
    assert measured["provenance"]["config"]["batch"] == batch
    assert len(file.read_text().splitlines()) == len(measured) + 2  # a line an entry
    assert file.with_suffix(".png").stat().st_size > 1000
    assert CostCurve.make(file).rows == (batch, 2 * batch, 5 * batch)
    assert sequences_curve(file) == CostCurve((1, 2), tuple(measured["sequences_cost"]))
    assert build("tree", "sequoia", acceptance=str(file), curve=str(file), draft_cost=None, max_nodes=4).depth <= 3


@pytest.mark.usefixtures("quick")
def test_without_a_drafter_or_with_one_that_takes_no_tree(target: Path, tmp_path: Path) -> None:
    for drafter in ("", "drafter=ngram"):
        file = tmp_path / f"{drafter}.json"
        arguments = [f"target={target}", f"output={file}", "context=40", "seconds=0.1", "prompts=2"]
        assert main(["bench", "curve", *arguments, *([drafter] * bool(drafter))]) == 0
        measured = json.loads(file.read_text())
        assert "acceptance" not in measured
        assert ("draft_cost" in measured) == bool(drafter)
    with pytest.raises(ValueError, match="has no `acceptance`"):
        build("tree", "sequoia", acceptance=str(file))


def test_costs_are_ratios_within_a_round(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """A machine that becomes slower with every round measures the same curve."""
    speed = [1.0]

    def turn(model: object, nodes: int, batch: int, context: int) -> Any:
        def sample() -> float:
            speed[0] *= 1.1 if (nodes, batch) == (1, 1) else 1.0  # the first of a round
            return speed[0] * (1 + 0.01 * nodes) * (batch + 1)

        return sample

    monkeypatch.setattr(curve, "verify_turn", turn)
    measured = curve.measure_curve(curve.Settings(target=str(target), seconds=0.1))
    assert measured["rounds"] >= 5
    assert measured["cost"] == [round((1 + 0.01 * n) / 1.01, 4) for n in curve.NODES]
    assert measured["p20"] == measured["p80"] == measured["cost"]
    assert measured["sequences"] == list(curve.SEQUENCES)
    assert measured["sequences_cost"] == [(count + 1) / 2 for count in curve.SEQUENCES]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_ranks_are_those_of_the_targets_own_tokens(temperature: float) -> None:
    """By hand: at every place of the target's text, which of the draft's best children carries its next token."""
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    draft = noisy_copy(model, 0.05)
    sampling = SamplingParams(temperature=temperature, seed=5)
    spec = {"_target_": "specdec.drafters.draft_model.DraftModel", "model": draft}
    found = acceptance_by_rank(model, spec, PROMPTS, 20, 3, sampling)
    assert found["places"] == len(PROMPTS) * 19  # the prefill's token is drawn without a draft
    if temperature:
        assert 0.1 < sum(found["acceptance"]) < 1
        return
    counts = [0] * 4
    for prompt in PROMPTS:
        text = plain_text(model, prompt, 20)
        with torch.inference_mode():
            best = draft(torch.tensor([prompt + text])).logits[0].topk(3).indices.tolist()
        for place in range(1, 20):
            ranked = best[len(prompt) + place - 1]
            counts[ranked.index(text[place]) if text[place] in ranked else 3] += 1
    assert counts[0] > counts[3] > 0
    assert found["acceptance"] == [round(count / sum(counts), 4) for count in counts[:3]]


def test_one_token_a_step_is_the_same_text() -> None:
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    rule = OneToken(torch.zeros(3, dtype=torch.int64))
    engine = Engine(model, DraftModel(noisy_copy(model), StaticTree([[0], [1]])), None, rule)
    requests = [Request(prompt, 12, SamplingParams()) for prompt in PROMPTS]
    texts, stats = serve(engine, requests)
    assert texts == [plain_text(model, prompt, 12) for prompt in PROMPTS]
    assert all(lengths == [1] * 11 for lengths in stats.accept_lengths)
    assert int(rule.counts.sum()) == 33


def test_which_drafters_take_trees() -> None:
    assert [takes_trees(read_yaml("drafter", name)) for name in ("draft_model", "recycling", "ngram")] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("batch=0", "batch=0; expected a whole number above 0"),
        ("batch=1.5", "batch=1.5; expected a whole number above 0"),
        ("seconds=x", "seconds=x; expected a number above 0"),
        ("temperature=-1", "temperature=-1; expected a number above 0, or 0"),
        ("bach=1", "unknown setting of bench 'bach'. Did you mean 'batch'"),
        ("drafter=ngrm", "unknown drafter 'ngrm'"),
        ("target=nowhere", "cannot load 'nowhere'"),
        ("context=100000", "positions"),
    ],
)
def test_refuses(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "curve", argument]) == 1
    assert message in capsys.readouterr().err


def test_the_figure(tmp_path: Path) -> None:
    measured = {
        "nodes": [1, 8], "cost": [1.0, 1.4], "p20": [1.0, 1.3], "p80": [1.0, 1.6],
        "target": "tiny", "dtype": "float32", "device": "cpu", "batch": 1,
    }  # fmt: skip
    cost_curve(measured, tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")
