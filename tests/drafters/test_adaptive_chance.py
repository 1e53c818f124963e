"""What `adaptive` writes under rules whose text depends on drafts, beside neighbours that share a slot's noise.

Every request has a neighbour of the same seed whose prompt is a token longer: what it accepts in a step is drawn from
the noise that the request meets in its next one. Were a size to know that, a draft would be looked at when it is going
to be accepted, and be left out when not. False alarms: each slow test fails by chance with a probability below
ALARM = 1e-8, each quick one below QUICK_ALARM. Seeds are fixed, so that the outcome on one machine is always the same.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.acceptance.rejection import Rejection
from specdec.acceptance.traversal import Traversal
from specdec.core import AcceptanceRule, TreePolicy
from specdec.decode import decode
from specdec.drafters.adaptive import Adaptive, State
from specdec.drafters.draft_model import DraftModel
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.step import Step
from specdec.target import Target
from specdec.tree import budget
from specdec.tree.static import StaticTree, chain

from ..acceptance.joint import ALARM, PROMPT, agreement, exact_joint
from ..models import make_model

QUICK_ALARM = 1e-3  # far fewer draws
VOCAB = 6
LENGTH = 4  # tokens of the joint
PAIRS = 256
TREES: dict[str, TreePolicy] = {"chain": chain(1), "static": StaticTree([[0], [1], [0, 0], [0, 1], [1, 0]])}
RULES: dict[str, AcceptanceRule] = {"rejection": Rejection(), "traversal": Traversal()}
SETTINGS = {"temperature": 1.0}


class Prying(Adaptive):
    """Every slot decides by its neighbour's past."""

    def _sizes(self, state: State, live: list[int]) -> list[int]:
        slots = {slot: state.slots.get(slot ^ 1, account) for slot, account in state.slots.items()}
        return super()._sizes(replace(state, slots=slots), live)


@pytest.fixture(autouse=True)
def no_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one that every request begins with, so that what is drafted is decided by the past alone."""
    monkeypatch.setattr(budget, "CREDIT", 0.0)


def alike(seed: int) -> PreTrainedModel:
    """A model that says nearly the same after every text, so that neighbours accept and refuse alike."""
    model = make_model(vocab_size=VOCAB, num_hidden_layers=1, seed=seed, initializer_range=0.25)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight  # [V, H]
        embedding.copy_(embedding[1] + 0.2 * embedding)
    return model


def texts(rule: str, tree: str, draws: int, kind: type[Adaptive]) -> tuple[Tensor, float]:
    """`[draws, LENGTH]` of the requests, a seed for each; and the share of a full tree that their steps drafted. Pairs
    enter together. A past of one step decides: if all was accepted a full tree pays, and if nothing was none does."""
    drafter = kind(DraftModel(alike(1), TREES[tree]), 0.5 / PAIRS, 0.0, allowance=0.0, decay=0.01)
    run = Step(Target(alike(0)), drafter, RULES[rule], 2 * PAIRS, len(PROMPT) + 1 + LENGTH)
    drawn = torch.full((draws, LENGTH), -1)
    nodes = steps = 0
    for first in range(0, draws, PAIRS):
        requests = [
            Request(prompt, LENGTH, SamplingParams.from_dict({**SETTINGS, "seed": seed}))
            for seed in range(first, first + PAIRS)
            for prompt in (PROMPT, [2, *PROMPT])
        ]
        for generation, _ in decode(run, requests):
            if generation.finished and generation.index % 2 == 0:
                drawn[first + generation.index // 2] = torch.tensor(generation.new_ids)
                nodes, steps = nodes + generation.stats.nodes, steps + generation.stats.steps
    return drawn, nodes / steps / (TREES[tree].max_nodes - 1)


@pytest.mark.parametrize(("rule", "tree"), [("rejection", "chain"), ("traversal", "static")])
def test_joint_distribution_quickly(rule: str, tree: str) -> None:
    drawn, share = texts(rule, tree, 4 * PAIRS, Adaptive)
    assert 0.2 < share < 0.95, "sizes change"
    assert agreement(drawn, exact_joint(alike(0), PROMPT, SETTINGS, LENGTH)) > QUICK_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("rule", RULES)
def test_joint_distribution(rule: str, tree: str) -> None:
    drawn, share = texts(rule, tree, 32 * PAIRS, Adaptive)
    assert 0.2 < share < 0.95, "sizes change"
    assert agreement(drawn, exact_joint(alike(0), PROMPT, SETTINGS, LENGTH)) > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_size_that_knows_what_comes_is_seen(rule: str) -> None:
    drawn, share = texts(rule, "chain", 32 * PAIRS, Prying)
    assert 0.2 < share < 0.95
    assert agreement(drawn, exact_joint(alike(0), PROMPT, SETTINGS, LENGTH)) < ALARM
