"""Lossy rules: what they accept, that they say so, and that the proof of losslessness refuses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specdec import registry
from specdec.acceptance.relaxed import Relaxed
from specdec.acceptance.typical import Typical
from specdec.core import AcceptanceRule, Verdict
from specdec.sampling import SamplingParams
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree
from specdec.tree.token_tree import TokenTree

from .exact import emitted_distribution, largest_difference
from .pairs import pair
from .test_exact import ROUNDING
from .test_walks import SAMPLED, VOCAB, batches, logits_for, step

WARM = [SamplingParams(temperature=1.0)]
RULES = [Typical(), Relaxed(top_k=2, ratio=0.0), Relaxed()]


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "fixed"])
@pytest.mark.parametrize("rule", RULES, ids=["typical", "relaxed top-k", "relaxed"])
def test_the_proof_refuses_them(rule: AcceptanceRule, drawn: bool) -> None:
    policy: Any = StaticTree([[0], [1], [0, 0]]) if drawn else BestFirst(max_nodes=5, depth=2, top_k=2)
    got, wanted = emitted_distribution(rule, policy, *pair("random", 3))
    assert largest_difference(got, wanted) > 0.01
    assert not rule.lossless


@pytest.mark.parametrize("rule", RULES, ids=["typical", "relaxed top-k", "relaxed"])
def test_at_temperature_zero_nothing_is_lost(rule: AcceptanceRule) -> None:
    got, wanted = emitted_distribution(rule, StaticTree([[0], [1], [0, 0]]), *pair("greedy target", 3))
    assert largest_difference(got, wanted) < ROUNDING


def naive(tree: TokenTree, b: int, logits: Tensor, fits: Any) -> tuple[list[int], int]:
    """The path and the token after it, path by path; `fits` (probabilities `[V]`, token)."""
    best: tuple[int, float, list[int]] = (0, 0.0, [0])
    for leaf in range(int(tree.sizes[b])):
        path = tree.ancestors[b, leaf].nonzero()[:, 0].tolist()
        probs = [logits[b, node].softmax(-1) for node in path]
        tokens = [int(tree.tokens[b, node]) for node in path[1:]]
        if all(fits(p, t) for p, t in zip(probs, tokens, strict=False)):
            likely = sum(float(p[t].log()) for p, t in zip(probs, tokens, strict=False))
            best = max(best, (len(tokens), likely, path), key=lambda found: found[:2])
    return best[2], int(logits[b, best[2][-1]].argmax())


def check(verdict: Verdict, tree: TokenTree, logits: Tensor, fits: Any) -> None:
    for b in range(tree.batch_size):
        if tree.sizes[b] == 0:
            assert int(verdict.num_accepted[b]) == 0
            continue
        path, token = naive(tree, b, logits, fits)
        assert verdict.path[b, : len(path)].tolist() == path
        assert int(verdict.num_accepted[b]) == len(path)
        assert int(verdict.next_token[b]) == token


@given(batches(), st.integers(0, 1000))
def test_typical_path_by_path(tree: TokenTree, seed: int) -> None:
    def fits(probs: Tensor, token: int) -> bool:
        entropy = -float((probs * probs.log()).sum())
        return float(probs[token]) > min(0.2, 0.6 * 2.718281828459045**-entropy)

    logits = logits_for(tree, seed)
    check(Typical(epsilon=0.2, delta=0.6)(tree, logits, step(WARM, tree)), tree, logits, fits)


@given(batches(), st.integers(0, 1000), st.sampled_from([(2, 0.0), (0, 0.3), (3, 0.3), (99, 0.0)]))
def test_relaxed_path_by_path(tree: TokenTree, seed: int, setting: tuple[int, float]) -> None:
    top_k, ratio = setting

    def fits(probs: Tensor, token: int) -> bool:
        rank = int((probs > probs[token]).sum())
        return (not top_k or rank < top_k) and bool(probs[token] >= ratio * probs.max())

    logits = logits_for(tree, seed)
    check(Relaxed(top_k=top_k, ratio=ratio)(tree, logits, step(WARM, tree)), tree, logits, fits)


def test_the_likeliest_of_the_longest() -> None:
    tree = TokenTree.from_paths([0], [[[1, 2], [1, 3], [4]]])
    logits = torch.zeros(1, 5, VOCAB)
    logits[0, 0, 4], logits[0, 1, 3] = 0.5, 0.5
    verdict = Relaxed(top_k=VOCAB)(tree, logits, step(WARM, tree))
    assert verdict.path[0].tolist()[:3] == [0, 1, 3]


def test_the_threshold_follows_the_entropy() -> None:
    """The same probability of 0.1 passes where the target is unsure and not where it is sure of something else."""
    tree = TokenTree.from_paths([0, 0], [[[1]], [[1]]])
    unsure, sure = [0.25, 0.1, 0.25, 0.2, 0.2], [0.9, 0.1, 0.0, 0.0, 0.0]
    logits = torch.tensor([[unsure] * 2, [sure] * 2]).log()
    assert Typical(epsilon=0.2)(tree, logits, step(WARM, tree)).num_accepted.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        ("typical", {"epsilon": 0.0}, "epsilon is 0.0; expected a number in"),
        ("typical", {"delta": 1.5}, "delta is 1.5"),
        ("relaxed", {"top_k": -1}, "top_k is -1; expected an integer"),
        ("relaxed", {"top_k": 2.0}, "'top_k' of acceptance is 2.0; expected a whole number"),
        ("relaxed", {"ratio": 1.5}, "ratio is 1.5; expected a number in"),
        ("relaxed", {"top_k": 0, "ratio": 0.0}, "every token passes; set one of them"),
    ],
)
def test_settings_that_make_no_sense(rule: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.build("acceptance", rule, **settings)


def test_settings_differ_by_request() -> None:
    """Greedy beside warm in one batch."""
    tree = TokenTree.from_paths([0, 0], [[[1]], [[1]]])
    logits = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1]).log().expand(2, 2, 5)
    verdict = Relaxed(top_k=2)(tree, logits, step(SAMPLED[:2], tree))
    assert verdict.num_accepted.tolist() == [1, 2]
