"""Several steps in a row, with the real noise: what one step has looked at must not come again in the next.

`test_exact` draws every child independently. Here tokens come from `noise`, through `grow` and `Sampler` as in the
loop, with models that are tables. False alarms: every test fails by chance with a probability below ALARM; seeds are
fixed, so that the outcome is always the same.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor

from specdec import noise
from specdec.acceptance.block import Block
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.traversal import Traversal
from specdec.core import AcceptanceRule, TreePolicy
from specdec.sampling import Sampler, SamplingParams, StepSampling
from specdec.tree.grow import Frontier, grow
from specdec.tree.static import StaticTree, chain

from ..chance import g_test

ALARM = 1e-8
VOCAB = 3
LENGTH = 4
TEXTS = 24_000
CPU = torch.device("cpu")
PATHS = [[0], [1], [0, 0], [1, 0], [0, 0, 0], [1, 0, 0]]
TREE, REPLACED = StaticTree(PATHS), StaticTree(PATHS, replacement=True)
CASES: dict[str, tuple[AcceptanceRule, TreePolicy]] = {
    "rejection": (Rejection(), TREE),
    "block": (Block(), chain(3)),
    "traversal": (Traversal(), TREE),
    "rejection, with replacement": (Rejection(), REPLACED),
    "traversal, with replacement": (Traversal(), REPLACED),
}
# what follows each token: the draft likes to repeat what it has just drawn noise for
TARGET = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5]])
DRAFT = torch.tensor([[0.2, 0.2, 0.6], [0.6, 0.2, 0.2], [0.2, 0.6, 0.2]])


@cache
def settings(top_k: int) -> list[SamplingParams]:
    """Of every text."""
    return [SamplingParams(temperature=1.0, top_k=top_k, seed=seed) for seed in range(TEXTS)]


def texts(rule: AcceptanceRule, policy: TreePolicy, top_k: int = 0) -> Tensor:
    """`[TEXTS, LENGTH]`, each with a seed of its own, all after token 0."""
    sampler = Sampler(TEXTS, VOCAB, CPU)
    for slot, params in enumerate(settings(top_k)):
        sampler.start(slot, params, [0])
    written = torch.zeros(TEXTS, LENGTH + policy.max_nodes, dtype=torch.int64)
    lengths = torch.zeros(TEXTS, dtype=torch.int64)
    roots = torch.zeros(TEXTS, dtype=torch.int64)
    target, draft = TARGET.log(), DRAFT.log()

    def expand(frontier: Frontier) -> Tensor:
        return draft[frontier.tokens]

    while (lengths < LENGTH).any():
        step = sampler.at(lengths, policy.max_nodes, range(TEXTS))
        tree = grow(policy, roots, draft[roots], expand, step.draft_noise(False)).tree
        verdict = rule(tree, target[tree.tokens], step)
        emitted = verdict.emitted(tree)  # [TEXTS, D]
        places = lengths[:, None] + torch.arange(emitted.shape[1])
        written.scatter_(1, places.clamp_max(written.shape[1] - 1), emitted)
        lengths = (lengths + verdict.num_accepted).clamp_max(LENGTH)  # what is complete may go on anywhere
        roots = verdict.next_token
    return written[:, :LENGTH]


def agreement(drawn: Tensor, next_probs: Tensor = TARGET) -> float:
    """Probability by chance of texts that are at least as far from the target's."""
    joint = torch.ones((VOCAB,) * LENGTH, dtype=torch.float64)
    for text in itertools.product(range(VOCAB), repeat=LENGTH):
        for before, token in itertools.pairwise((0, *text)):
            joint[text] *= next_probs[before, token].double()
    flat = (drawn * VOCAB ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    return g_test(flat.bincount(minlength=VOCAB**LENGTH).view_as(joint), joint)


@pytest.mark.parametrize("case", CASES)
def test_steps_in_a_row(case: str) -> None:
    assert agreement(texts(*CASES[case])) > ALARM


@pytest.mark.parametrize("case", CASES)
def test_steps_in_a_row_with_top_k(case: str) -> None:
    """The two likeliest of the target; of the draft others, or all three, for two are equal at the cut."""
    kept = torch.where(TARGET >= 0.3, TARGET, 0.0)
    assert agreement(texts(*CASES[case], top_k=2), kept / kept.sum(1, keepdim=True)) > ALARM


def position_only(step: StepSampling, depth: int, count: int) -> Tensor:
    """As for the target: the same numbers at the same position, whichever step or sibling asks."""
    return step.keys(noise.DRAFT_STREAM, depth)[..., None]


DRAFT_KEYS = StepSampling.draft_keys


@pytest.mark.parametrize("case", ["block", "traversal"])
def test_drafts_that_come_again_are_seen(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that look further down than they accept need what the drafter draws to be new at every step."""
    monkeypatch.setattr(StepSampling, "draft_keys", position_only)
    assert agreement(texts(*CASES[case])) < ALARM


@pytest.mark.parametrize("case", ["traversal", "rejection, with replacement", "traversal, with replacement"])
def test_siblings_that_draw_alike_are_seen(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traversal goes on below the next sibling knowing what the draft drew below the first. With replacement, siblings
    themselves are drawn with this noise."""

    def alike(step: StepSampling, depth: int, count: int) -> Tensor:
        return DRAFT_KEYS(step, depth, 1).expand(-1, -1, count)

    monkeypatch.setattr(StepSampling, "draft_keys", alike)
    assert agreement(texts(*CASES[case])) < ALARM


def test_rejection_does_not_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at nothing below the place where it stops."""
    monkeypatch.setattr(StepSampling, "draft_keys", position_only)
    assert agreement(texts(*CASES["rejection"])) > ALARM
