"""Block verification: lossless by enumeration, never shorter than rejection, chains only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdec.acceptance import residual
from specdec.acceptance.block import Block
from specdec.acceptance.rejection import Rejection
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from .exact import accepted_length, drafts, emitted_distribution, largest_difference, random_model
from .pairs import KINDS, pair
from .test_exact import ROUNDING
from .test_walks import SAMPLED, logits_for, step

# depth and vocabulary
CHAINS = [(1, 2), (1, 4), (2, 2), (2, 4), (3, 2), (3, 3), pytest.param(3, 4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("depth", "vocab"), CHAINS)
def test_block_is_lossless(depth: int, vocab: int, kind: str) -> None:
    got, wanted = emitted_distribution(Block(), chain(depth), *pair(kind, vocab))
    assert largest_difference(got, wanted) < ROUNDING


@pytest.mark.parametrize(("depth", "vocab"), [(2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize("spread", [0.5, 1.5, 4.0])
def test_block_never_accepts_less_than_rejection(depth: int, vocab: int, spread: float) -> None:
    """On every random pair; and more on nearly all of them."""
    gains = []
    for seed in range(0, 16, 2):
        target, drafter = random_model(vocab, seed, spread), random_model(vocab, seed + 1)
        trees = list(drafts(chain(depth), drafter))
        gains.append(accepted_length(Block(), trees, target) - accepted_length(Rejection(), trees, target))
    assert min(gains) > -ROUNDING
    assert sum(gain > 1e-4 for gain in gains) >= 6


def test_a_chain_of_one_is_rejection() -> None:
    target, drafter = pair("random", 4)
    trees = list(drafts(chain(1), drafter))
    assert accepted_length(Block(), trees, target) == pytest.approx(accepted_length(Rejection(), trees, target))


def test_a_later_token_makes_up_for_an_earlier_one() -> None:
    """By hand. The target gives the first drafted token half of what the draft gives, and the second one twice."""

    def target(text: tuple[int, ...]) -> Tensor:
        return torch.tensor([0.5, 0.5] if not text else [1.0, 0.0], dtype=torch.float64)

    def drafter(text: tuple[int, ...]) -> Tensor:
        return torch.tensor([1.0, 0.0] if not text else [0.5, 0.5], dtype=torch.float64)

    trees = list(drafts(chain(2), drafter))
    # rejection: the first token with 1/2, then the second, if it is token 0 (1/2), always
    assert accepted_length(Rejection(), trees, target) == pytest.approx(0.5 + 0.5 * 0.5)
    # block: token 0 twice (1/2) with min(1, 1/2 * 2) = 1; else the first token alone with S / (S + 1 - c) = 0
    assert accepted_length(Block(), trees, target) == pytest.approx(0.5 * 2)


@pytest.mark.parametrize("chance", ["left_chance", "residual"])
def test_a_wrong_rule_is_seen(chance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mistakes that are easily made: the residual of a token instead of the block, an inner end never taken."""
    right = residual.reject

    def wrong(target: Tensor, draft: Tensor, token: Tensor, c: Tensor) -> residual.Left:
        left = right(target, draft, token, c)
        if chance == "residual":
            return right(target, draft, token, torch.ones_like(c))._replace(chance=left.chance)
        return left._replace(chance=c)

    monkeypatch.setattr("specdec.acceptance.block.reject", wrong)
    got, wanted = emitted_distribution(Block(), chain(2), *pair("random", 3))
    assert largest_difference(got, wanted) > 1e-3


def test_trees_are_refused() -> None:
    tree = TokenTree.from_paths([1, 2], [[[3, 4]], [[3], [4]]])
    drawn = TokenTree(tree.tokens, tree.parents, tree.sizes, torch.full((2, 3, 5), 0.2))
    with pytest.raises(ValueError, match=r"expected chains[.] Use tree=chain, or acceptance=traversal"):
        Block()(drawn, logits_for(drawn, 0), step(SAMPLED, drawn))
    # children that were fixed are welcome
    assert (Block()(tree, logits_for(tree, 0), step(SAMPLED, tree)).num_accepted >= 1).all()


def test_first_children_where_nothing_may_be_read() -> None:
    """On a GPU a tree is not refused. What is left alone costs tokens, not exactness."""

    def at_once(tree: TokenTree, logits: Tensor, sampling: object) -> object:
        sampling.at_once = True  # type: ignore[attr-defined]
        return Block()(tree, logits, sampling)  # type: ignore[arg-type]

    policy = StaticTree([[0], [1], [0, 0]])
    got, wanted = emitted_distribution(at_once, policy, *pair("random", 3))  # type: ignore[arg-type]
    assert largest_difference(got, wanted) < ROUNDING
