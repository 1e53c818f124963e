"""The losslessness check: equal, a tie that rounding decides, a failure; and the verdict that is made from them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from specdec import SamplingParams, loading
from specdec.acceptance.block import Block
from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.relaxed import Relaxed
from specdec.acceptance.traversal import Traversal
from specdec.acceptance.typical import Typical
from specdec.engine import Engine
from specdec.experiments import lossless
from specdec.experiments.methods import Method
from specdec.experiments.summary import verdict
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.tree.token_tree import TokenTree

from ..fakes import Scripted

PROMPT = [5, 6, 7, 8]
GREEDY, WARM = SamplingParams(), SamplingParams(temperature=0.9, seed=3)


def decode(engine: Engine, sampling: SamplingParams) -> list[int]:
    request = Request(PROMPT, 6, sampling)
    return [t for _, tokens in engine.run([request], DecodingStats()) for t in tokens]


@pytest.fixture(scope="module")
def engine(target) -> Engine:
    """Tokens 40 and 41 have the same row of the LM head, so their logits are always equal."""
    model = loading.load_model(str(target), dtype="float32")
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[41] = head[40]
    return Engine(model, "none", None, "coupled")


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("position", [0, 3])
def test_another_token_is_a_failure(engine, sampling, position):
    expected = decode(engine, sampling)
    assert lossless.compare(engine.target, PROMPT, expected, list(expected), sampling).equal
    other = next(t for t in range(50, 60) if t != expected[position])
    got = [*expected[:position], other, *expected[position + 1 :]]
    check = lossless.compare(engine.target, PROMPT, expected, got, sampling)
    assert not check.equal
    assert check.position == position
    assert check.tie is False
    assert check.gap > check.threshold


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_the_scores_are_those_the_baseline_chose_by(engine, sampling):
    expected = decode(engine, sampling)
    for position in range(len(expected)):
        text = [*PROMPT, *expected[:position]]
        scores, _ = lossless._scores(engine.target, text, position > 0, sampling)
        assert int(scores.argmax()) == expected[position]


def test_equal_logits_are_a_tie(engine):
    check = lossless.compare(engine.target, PROMPT, [40], [41], GREEDY)
    assert check.gap == 0
    assert check.tie


@pytest.mark.parametrize("length", [1, 2, 4, 30])
def test_noise_is_rounding(engine, length):
    """In float32, after texts shorter and longer than the tree it is measured in."""
    check = lossless.compare(engine.target, [7] * length, [40], [41], GREEDY)
    assert check.tie
    assert check.noise < 1e-4
    assert check.tokens == (40, 41)


def test_positions_that_are_wrong_in_trees_are_a_bug_however_close_the_tokens_are(engine, monkeypatch):
    monkeypatch.setattr(TokenTree, "depths", property(lambda tree: tree._shape[1] + (tree._shape[1] > 0)))
    check = lossless.compare(engine.target, PROMPT, [40], [41], GREEDY)
    assert check.gap == 0
    assert check.noise > check.threshold
    assert check.tie is False


class UntilItParts(Scripted):
    def propose(self, state, roots, noise):
        try:
            return super().propose(state, roots, noise)
        except AssertionError:
            return TokenTree.roots(roots)


def test_a_planted_mistake_is_a_bug_in_the_text(engine, monkeypatch):
    """A drafter's trees are verified at wrong positions: the texts part, and not by rounding."""
    expected = decode(engine, GREEDY)
    drafter = UntilItParts({tuple(PROMPT): expected * 2}, hit=1.0, max_nodes=6, chains=True, vocab=50)
    drafted = Engine(engine.target.model, drafter, None, "coupled")
    assert decode(drafted, GREEDY) == expected
    monkeypatch.setattr(TokenTree, "depths", property(lambda tree: tree._shape[1] + (tree._shape[1] > 0)))
    got = decode(drafted, GREEDY)
    check = lossless.compare(engine.target, PROMPT, expected, got, GREEDY)
    assert check.equal is False
    assert check.tie is False


def test_a_shorter_text_is_a_failure(engine):
    expected = decode(engine, GREEDY)
    check = lossless.compare(engine.target, PROMPT, expected, expected[:-1], GREEDY)
    assert (check.equal, check.tie, check.position) == (False, False, 5)


def test_thresholds():
    assert lossless.tie_threshold(17.0, torch.float32) == 1e-4
    assert lossless.tie_threshold(17.0, torch.bfloat16) == 4 * 0.125
    assert lossless.tie_threshold(15.9, torch.bfloat16) == 4 * 0.0625
    assert lossless.tie_threshold(1.0, torch.float16) == 4 * 2.0**-10


@pytest.mark.parametrize(("largest", "tie"), [(1.0, False), (17.0, True)])
def test_rounding_is_that_of_the_largest_logit(monkeypatch, largest, tie):
    """Two unlikely tokens, drawn for their noise: their own logits are small, the sums they come of are not."""
    logits = torch.tensor([largest, 0.5, 0.4])
    scores = torch.tensor([0.0, 9.0, 8.9])
    monkeypatch.setattr(lossless, "_scores", lambda *_: (scores, logits))
    monkeypatch.setattr(lossless, "_in_a_tree", lambda *_: logits)
    target = SimpleNamespace(model=SimpleNamespace(dtype=torch.bfloat16), block_rows=0)
    assert lossless.compare(target, PROMPT, [1], [2], SamplingParams(temperature=1.0)).tie is tie


@pytest.mark.parametrize(("penalty", "logits", "gap"), [(1.5, [-20.0, -20.4, -30], 0.6), (0.5, [20.4, 20.0, 1], 0.8)])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_penalty_stretches_what_rounding_makes(penalty, logits, gap, temperature):
    """Negative logits are multiplied by it, positive ones divided: the gap of a tie (0.5 here) grows with them."""
    raw = torch.tensor(logits)
    scores = (raw * penalty if raw[0] < 0 else raw / penalty) / (temperature or 1)

    def judge(scores: torch.Tensor, penalty: float, noise: float = 0.0) -> lossless.Check:
        sampling = SamplingParams(temperature=temperature, repetition_penalty=penalty)
        return lossless.judge(0, (0, 1), scores, raw, noise, torch.bfloat16, sampling)

    check = judge(scores, penalty)
    assert check.gap == pytest.approx(gap / (temperature or 1), rel=1e-5)
    assert check.tie
    assert not judge(scores, 1.0).tie
    assert not judge(2 * scores, penalty).tie  # no more than the penalty's own factor
    assert not judge(scores, penalty, noise=1.1).tie  # raw logits' noise, which no penalty has touched


def test_what_can_be_compared():
    assert lossless.comparable(Coupled(), WARM)
    assert lossless.comparable(Rejection(), GREEDY)
    assert not lossless.comparable(Rejection(), WARM)


@pytest.mark.parametrize(
    ("rule", "checks", "word"),
    [
        (Coupled(), [{"equal": True}] * 3, "yes"),
        (Coupled(), [{"equal": True}, {"equal": False, "tie": True}], "yes (1 tie)"),
        (Coupled(), [{"equal": False, "tie": True}] * 2, "yes (2 ties)"),
        (Coupled(), [{"equal": False, "tie": True}, {"equal": False, "tie": False}], "no"),
        (Rejection(), [], "in distribution"),
        (Block(), [], "in distribution"),
        (Traversal(), [], "in distribution"),
        (Typical(), [{"equal": True}], "not lossless"),
        (Relaxed(), [{"equal": True}], "not lossless"),
    ],
)
def test_verdicts(rule, checks, word):
    method = Method("m", {}, None, {"_target_": "a.Rule"}, GREEDY, "none")
    empty = {"comparable": True, "tie": None, "position": 0, "gap": 0.5}
    same = {"repeat": 0, "turn": 0, "new_tokens": 10}
    rows = [same | {"question_id": i, "check": empty | check} for i, check in enumerate(checks)]
    rows.append({"question_id": 99, "repeat": 0, "turn": 0, "check": {"comparable": False}})
    found = verdict(method, rule, rows)
    assert found["verdict"] == word
    assert found["compared"] == len(checks)
    assert sum(not d["tie"] for d in found["differences"]) == (word == "no")
    if found["different"]:
        assert found["differences"][0]["tie"] == (word != "no")  # bugs come first
        equal = len(checks) - found["different"]
        assert found["per_thousand_tokens"] == 1000 * found["different"] / (10 * equal + found["different"])
