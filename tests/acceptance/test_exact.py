"""Losslessness as an equation: what a step emits has the target's own joint distribution, to rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.core import TreePolicy, Verdict
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from .exact import (
    ExactSampling,
    accepted_length,
    drafts,
    emitted_distribution,
    largest_difference,
    outcomes,
)
from .pairs import KINDS, pair

ROUNDING = 1e-9

POLICIES: dict[str, tuple[int, TreePolicy]] = {  # name -> vocabulary, shape
    "chain of 1": (5, chain(1)),
    "chain of 2": (3, chain(2)),
    "chain of 3": (2, chain(3)),
    "two children": (4, StaticTree([[0], [1]])),
    "three children": (4, StaticTree([[0], [1], [2]])),
    "all children": (3, StaticTree([[0], [1], [2]])),
    "two levels": (3, StaticTree([[0], [1], [0, 0], [0, 1]])),
    "fewer below": (3, StaticTree([[0], [1], [1, 0]])),
}


def cases() -> list[Any]:
    """Every shape with every kind; the long ones, of which shorter shapes test the same, are slow."""
    long = {("two levels", kind) for kind in ("sharp", "equal", "half equal", "ties")}
    return [
        pytest.param(shape, kind, marks=pytest.mark.slow if (shape, kind) in long else ())
        for shape in POLICIES
        for kind in KINDS
    ]


@pytest.mark.parametrize(("shape", "kind"), cases())
def test_rejection_with_drawn_children(shape: str, kind: str) -> None:
    vocab, policy = POLICIES[shape]
    got, wanted = emitted_distribution(Rejection(), policy, *pair(kind, vocab))
    assert largest_difference(got, wanted) < ROUNDING


REPLACED: dict[str, tuple[int, TreePolicy]] = {  # name -> vocabulary, shape; siblings may carry the same token
    "chain of 2": (3, StaticTree([[0], [0, 0]], replacement=True)),
    "two of two": (2, StaticTree([[0], [1]], replacement=True)),
    "two children": (5, StaticTree([[0], [1]], replacement=True)),
    "three children": (4, StaticTree([[0], [1], [2]], replacement=True)),
    "more than there are tokens": (2, StaticTree([[0], [1], [2]], replacement=True)),
    "below the second": (3, StaticTree([[0], [1], [1, 0]], replacement=True)),
    "two levels": (3, StaticTree([[0], [1], [0, 0], [0, 1]], replacement=True)),
    "three levels": (2, StaticTree([[0], [1], [0, 0], [1, 0], [0, 0, 0], [0, 0, 1]], replacement=True)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", REPLACED)
def test_rejection_with_children_drawn_with_replacement(shape: str, kind: str) -> None:
    vocab, policy = REPLACED[shape]
    got, wanted = emitted_distribution(Rejection(), policy, *pair(kind, vocab))
    assert largest_difference(got, wanted) < ROUNDING


def test_how_siblings_were_drawn_is_needed() -> None:
    """Drawn without replacement and judged as if with it, they bias the text. The other way round they do not (an equal
    sibling counts as fixed, and its parent has nothing left for it), but less is accepted than could be."""

    def confused(tree: TokenTree, *given: Any) -> Verdict:
        return Rejection()(replace(tree, replacement=not tree.replacement), *given)

    rule: Any = confused
    paths, models = [[0], [1]], pair("random", 5)
    got, wanted = emitted_distribution(rule, StaticTree(paths), *models)
    assert largest_difference(got, wanted) > 1e-3
    policy = StaticTree(paths, replacement=True)
    got, wanted = emitted_distribution(rule, policy, *models)
    assert largest_difference(got, wanted) < ROUNDING
    trees = list(drafts(policy, models[1]))
    assert accepted_length(Rejection(), trees, models[0]) > accepted_length(rule, trees, models[0]) + 1e-3


def test_equal_siblings_are_offered_again() -> None:
    """By hand. Two children from a draft of 1/2, 1/2, a target of 3/4, 1/4: token 0 is always taken, token 1 half of
    the time, and what it leaves is all token 0: a second token 1 is refused, a second token 0 taken."""

    def target(text: tuple[int, ...]) -> Tensor:
        return torch.tensor([0.75, 0.25], dtype=torch.float64)

    def drafter(text: tuple[int, ...]) -> Tensor:
        return torch.tensor([0.5, 0.5], dtype=torch.float64)

    trees = list(drafts(StaticTree([[0], [1]], replacement=True), drafter))
    assert len(trees) == 4
    assert accepted_length(Rejection(), trees, target) == pytest.approx(0.5 + 0.5 * (0.5 + 0.5 * 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "sharp", "both have zeros"])
def test_rejection_on_a_full_binary_tree(kind: str) -> None:
    policy = StaticTree([[0], [1], [0, 0], [0, 1], [1, 0], [1, 1]])
    got, wanted = emitted_distribution(Rejection(), policy, *pair(kind, 3))
    assert largest_difference(got, wanted) < ROUNDING


@pytest.mark.parametrize("kind", ["random", "draft has zeros", "greedy"])
@pytest.mark.parametrize("rule", [Rejection(), Coupled()], ids=["rejection", "coupled"])
def test_fixed_children(rule: Any, kind: str) -> None:
    """Children kept because of what they are come without `draft_probs`, and the target alone decides."""
    got, wanted = emitted_distribution(rule, BestFirst(max_nodes=5, depth=2, top_k=2), *pair(kind, 3))
    assert largest_difference(got, wanted) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_coupled(kind: str) -> None:
    got, wanted = emitted_distribution(Coupled(), StaticTree([[0], [1], [0, 0], [1, 0]]), *pair(kind, 3))
    assert largest_difference(got, wanted) < ROUNDING


@dataclass(frozen=True)
class KeepsTheLikelier:
    """Would like to draft two children and keep the likelier; `fixed_shape` says whether it admits to that."""

    fixed_shape: bool
    depth: ClassVar[int] = 1
    max_nodes: ClassVar[int] = 2

    def branching(self, level: int) -> int:
        return 2

    def grow(self, level: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        best = scores.flatten(1).argmax(-1, keepdim=True)
        return best, best[:, :0]

    def prune(self, scores: Tensor) -> None:
        return None


@pytest.mark.parametrize("fixed_shape", [True, False])
def test_a_drawn_child_cannot_be_kept_for_what_it_is(fixed_shape: bool) -> None:
    """It would bias the text. A policy that claims a fixed shape is asked for it once, without scores; one that does
    not gets children that were not drawn."""
    got, wanted = emitted_distribution(Rejection(), KeepsTheLikelier(fixed_shape), *pair("random", 4))
    assert largest_difference(got, wanted) < ROUNDING


class FromTheTarget(ExactSampling):
    """A wrong rule: after a rejection it draws from the target, not from the residual."""

    def draw_from(self, probs: Tensor, depth: int) -> Tensor:
        return super().draw_from(0.98 * probs + 0.02 / probs.shape[-1], depth)


def test_a_small_mistake_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual that is off by 2 %, children that are accepted 1 % too often."""
    monkeypatch.setattr("tests.acceptance.exact.ExactSampling", FromTheTarget)
    got, wanted = emitted_distribution(Rejection(), StaticTree([[0], [1]]), *pair("random", 4))
    assert largest_difference(got, wanted) > 1e-4
    monkeypatch.undo()

    def generous(self: ExactSampling, probability: Tensor, depth: int, turn: int) -> Tensor:
        return ACCEPT(self, probability * 1.01, depth, turn)

    monkeypatch.setattr(ExactSampling, "accept", generous)
    got, wanted = emitted_distribution(Rejection(), chain(1), *pair("random", 4))
    assert largest_difference(got, wanted) > 1e-4


ACCEPT = ExactSampling.accept


def test_choices_are_all_made_once() -> None:
    """The enumeration itself: probabilities of all outcomes sum to one, each outcome's is its own."""
    probs = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)

    def run(choices: Any) -> tuple[int, int]:
        first = choices.choose(probs)
        return first, choices.choose(probs) if first else -1

    found = {outcome: weight for weight, outcome in outcomes(run)}
    assert sum(found.values()) == pytest.approx(1)
    assert found[0, -1] == pytest.approx(0.5)
    assert found[2, 3] == pytest.approx(0.06)
    assert len(found) == 1 + 2 * 3


def test_expected_length_of_a_chain_is_the_overlap() -> None:
    """The accepted fraction is not only right in distribution but the most there is: the sum of min(target, draft)."""
    target, drafter = pair("random", 5)
    accepted = accepted_length(Rejection(), list(drafts(chain(1), drafter)), target)
    assert accepted == pytest.approx(float(torch.minimum(target(()), drafter(())).sum()), abs=ROUNDING)
