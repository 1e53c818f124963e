"""Traversal verification: lossless by enumeration for every shape of tree, and never shorter than rejection."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from torch import Tensor

from specdec.acceptance import residual
from specdec.acceptance.block import Block
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.traversal import Traversal, tour
from specdec.core import TreePolicy
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from .exact import accepted_length, drafts, emitted_distribution, largest_difference, random_model
from .pairs import KINDS, pair
from .test_exact import POLICIES, REPLACED, ROUNDING
from .test_walks import batches

DEEP = StaticTree([[0], [1], [0, 0], [0, 1], [0, 0, 0]])
FORKS = StaticTree([[0], [1], [0, 0], [1, 0], [0, 0, 0], [1, 0, 0]])
FULL = StaticTree([[0], [1], [0, 0], [0, 1], [1, 0], [1, 1]])
SHAPES: dict[str, tuple[int, TreePolicy]] = {
    **POLICIES,
    "a leaf first": (3, StaticTree([[0], [1], [1, 0], [1, 1]])),
    "two branches": (3, StaticTree([[0], [1], [0, 0], [1, 0]])),
    "three levels": (2, DEEP),
    "two long branches": (2, FORKS),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_traversal_is_lossless(shape: str, kind: str) -> None:
    vocab, policy = SHAPES[shape]
    got, wanted = emitted_distribution(Traversal(), policy, *pair(kind, vocab))
    assert largest_difference(got, wanted) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", REPLACED)
def test_traversal_with_children_drawn_with_replacement(shape: str, kind: str) -> None:
    vocab, policy = REPLACED[shape]
    got, wanted = emitted_distribution(Traversal(), policy, *pair(kind, vocab))
    assert largest_difference(got, wanted) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [FULL, FORKS], ids=["full", "forks"])
def test_traversal_of_larger_vocabularies_is_lossless(policy: TreePolicy, kind: str) -> None:
    got, wanted = emitted_distribution(Traversal(), policy, *pair(kind, 3))
    assert largest_difference(got, wanted) < ROUNDING


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize(
    ("vocab", "policy"), [(2, DEEP), (2, FORKS), (3, chain(2))], ids=["three levels", "two long branches", "chain"]
)
def test_traversal_never_accepts_less_than_rejection(vocab: int, policy: TreePolicy, spread: float) -> None:
    """On random pairs. For chains, where it is block verification, that is a theorem; for trees, what is found."""
    gains = []
    for seed in range(40, 52, 2):
        target, drafter = random_model(vocab, seed, spread), random_model(vocab, seed + 1)
        trees = list(drafts(policy, drafter))
        gains.append(accepted_length(Traversal(), trees, target) - accepted_length(Rejection(), trees, target))
    assert min(gains) > -ROUNDING
    assert sum(gain > 1e-4 for gain in gains) >= 4


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_on_a_chain_it_is_block_verification(depth: int) -> None:
    target, drafter = pair("random", 2)
    trees = list(drafts(chain(depth), drafter))
    wanted = accepted_length(Block(), trees, target)
    assert accepted_length(Traversal(), trees, target) == pytest.approx(wanted, abs=ROUNDING)


@pytest.mark.parametrize("replacement", [False, True])
def test_below_one_node_it_is_recursive_rejection(replacement: bool) -> None:
    target, drafter = pair("random", 5)
    trees = list(drafts(StaticTree([[0], [1], [2]], replacement), drafter))
    wanted = accepted_length(Rejection(), trees, target)
    assert accepted_length(Traversal(), trees, target) == pytest.approx(wanted, abs=ROUNDING)


@pytest.mark.parametrize("mistake", ["chance", "residual", "siblings"])
def test_a_wrong_rule_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Easily made: a parent that keeps its chance, or its target; siblings as if they were drawn with replacement."""
    right = residual.reject

    def wrong(target: Tensor, draft: Tensor, token: Tensor, chance: Tensor) -> residual.Left:
        left = right(target, draft, token, chance)
        if mistake == "chance":
            return left._replace(chance=chance)
        return left._replace(weights=target.clone(), total=torch.ones_like(chance))

    if mistake == "siblings":
        monkeypatch.setattr("specdec.acceptance.traversal.without", lambda draft, token: draft)
    else:
        monkeypatch.setattr("specdec.acceptance.traversal.reject", wrong)
    got, wanted = emitted_distribution(Traversal(), SHAPES["two branches"][1], *pair("random", 3))
    assert largest_difference(got, wanted) > 1e-3


@given(batches())
def test_the_tour_is_a_depth_first_walk(tree: TokenTree) -> None:
    walk, leaving = tour(tree)
    for b in range(tree.batch_size):
        size = int(tree.sizes[b])
        parents = tree.parents[b, :size].tolist()

        def visit(node: int, parents: list[int] = parents) -> list[tuple[int, bool]]:
            below = [visit(child) for child, above in enumerate(parents) if above == node]
            return [(node, False), *itertools.chain(*below), (node, True)]

        wanted = visit(0) if size else []
        found = list(zip(walk[b].tolist(), leaving[b].tolist(), strict=True))
        assert found[: len(wanted)] == wanted
        assert all(node == -1 and not left for node, left in found[len(wanted) :])
        assert torch.equal(walk[b] >= 0, torch.arange(walk.shape[1]) < 2 * size)
