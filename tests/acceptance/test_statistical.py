"""The whole loop, sampled: what comes out has the target's joint distribution, computed by plain forwards.

The tokens are tested together, in neighbouring pairs and one by one: a bias that is spread over the whole joint shows
best in a margin. False alarms: each test here fails by chance with a probability below ALARM = 1e-8 (its margins taken
together), all of them below 1e-6. Power: `test_a_planted_bias_is_seen` moves 2 % of the texts, in the direction that is
hardest to see. Seeds are fixed, so that the outcome on one machine is always the same.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.acceptance.block import Block
from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.relaxed import Relaxed
from specdec.acceptance.traversal import Traversal
from specdec.acceptance.typical import Typical
from specdec.core import AcceptanceRule, TreePolicy
from specdec.decode import decode
from specdec.drafters.draft_model import DraftModel
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.step import Step
from specdec.target import Target
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain

from ..chance import g_test
from ..models import make_model, noisy_copy

ALARM = 1e-8
VOCAB = 6
LENGTH = 3  # tokens of the joint: the first from the prefill, the others from one step or two
PROMPT = [3, 1, 4]
DRAWS = 65_536
SLOTS = 256

SETTINGS = {
    "temperature": {"temperature": 0.7},
    "top-k": {"temperature": 1.0, "top_k": 4},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.0, "min_p": 0.1},
    "penalty": {"temperature": 1.0, "repetition_penalty": 1.5},
}
TREES: dict[str, TreePolicy] = {
    "chain": chain(2),
    "static": StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0]]),
    "best first": BestFirst(max_nodes=6, depth=2, top_k=3),
}
RULES: dict[str, AcceptanceRule] = {
    "coupled": Coupled(),
    "rejection": Rejection(),
    "block": Block(),
    "traversal": Traversal(),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(vocab_size=VOCAB, num_hidden_layers=1, initializer_range=0.15)


@pytest.fixture(scope="module")
def draft(model: PreTrainedModel) -> PreTrainedModel:
    return noisy_copy(model, scale=0.3)


def texts(
    model: PreTrainedModel, draft: PreTrainedModel, rule: AcceptanceRule, tree: TreePolicy, settings: dict[str, float]
) -> tuple[Tensor, float]:
    """`[DRAWS, LENGTH]`, a seed for each; and how many drafted tokens were accepted per step."""
    run = Step(Target(model), DraftModel(draft, tree), rule, SLOTS, len(PROMPT) + LENGTH)
    served = decode(
        run, (Request(PROMPT, LENGTH, SamplingParams.from_dict({**settings, "seed": seed})) for seed in range(DRAWS))
    )
    drawn = torch.zeros(DRAWS, LENGTH, dtype=torch.int64)
    accepted = steps = 0
    for generation, _ in served:
        if generation.finished:
            drawn[generation.index] = torch.tensor(generation.new_ids)
            accepted, steps = accepted + generation.stats.accepted, steps + generation.stats.steps
    return drawn, accepted / steps


def exact_joint(model: PreTrainedModel, settings: dict[str, float], tokens: int = LENGTH) -> Tensor:
    """`[VOCAB] * tokens` float64, by plain forwards and plain arithmetic."""
    joint = torch.ones((VOCAB,) * tokens, dtype=torch.float64)
    for length in range(tokens):
        beginnings = list(itertools.product(range(VOCAB), repeat=length))
        with torch.inference_mode():
            logits = model(torch.tensor([PROMPT + list(b) for b in beginnings])).logits[:, -1].double()
        for beginning, row in zip(beginnings, logits, strict=True):
            next_probs = processed(row, PROMPT + list(beginning), settings)
            joint[beginning] *= next_probs.view(VOCAB, *[1] * (tokens - length - 1))
    return joint


def processed(logits: Tensor, text: list[int], settings: dict[str, float]) -> Tensor:
    """`[V]` probabilities, each setting in its simplest form."""
    logits = logits.clone()
    penalty = settings.get("repetition_penalty", 1.0)
    for token in set(text):
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    probs = (logits / settings["temperature"]).softmax(-1)
    ranked = probs.argsort(descending=True)
    keep = torch.ones(VOCAB, dtype=torch.bool)
    if "top_k" in settings:
        keep[ranked[int(settings["top_k"]) :]] = False
    if "top_p" in settings:
        before = probs[ranked].cumsum(0) - probs[ranked]  # of all better ones
        keep[ranked[before >= settings["top_p"]]] = False
    if "min_p" in settings:
        keep &= probs >= settings["min_p"] * probs.max()
    kept = torch.where(keep, probs, 0.0)
    return kept / kept.sum()


def counts_of(drawn: Tensor) -> Tensor:
    tokens = drawn.shape[1]
    flat = (drawn * VOCAB ** torch.arange(tokens - 1, -1, -1)).sum(1)
    return flat.bincount(minlength=VOCAB**tokens).view((VOCAB,) * tokens)


def agreement(drawn: Tensor, joint: Tensor) -> float:
    """Probability of texts at least as far from `joint` by chance (Bonferroni over the margins looked at)."""
    counts, tokens = counts_of(drawn), joint.dim()
    runs = [(low, high) for high in range(2, tokens + 1) for low in range(high)]  # the first token alone is not drafted
    others = [tuple(i for i in range(tokens) if not low <= i < high) for low, high in runs]  # summed out
    return len(others) * min(g_test(counts.sum(o), joint.sum(o)) if o else g_test(counts, joint) for o in others)


CASES = [
    *itertools.product(("chain", "static"), ("temperature", "top-k", "top-p", "min-p")),
    ("best first", "temperature"),
    ("static", "penalty"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "tree", "settings"),
    [(rule, *case) for rule in RULES for case in CASES if rule != "block" or case[0] != "static"],
)
def test_joint_distribution(
    model: PreTrainedModel, draft: PreTrainedModel, rule: str, tree: str, settings: str
) -> None:
    drawn, accepted = texts(model, draft, RULES[rule], TREES[tree], SETTINGS[settings])
    assert 0.2 < accepted < 1.9, "the draft is neither useless nor perfect, so that both outcomes are tested"
    assert agreement(drawn, exact_joint(model, SETTINGS[settings])) > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Typical(), Relaxed()], ids=["typical", "relaxed"])
def test_lossy_rules_are_seen(model: PreTrainedModel, draft: PreTrainedModel, rule: AcceptanceRule) -> None:
    drawn, _ = texts(model, draft, rule, TREES["chain"], SETTINGS["temperature"])
    assert agreement(drawn, exact_joint(model, SETTINGS["temperature"])) < ALARM


@pytest.mark.slow
def test_a_planted_bias_is_seen(model: PreTrainedModel, draft: PreTrainedModel) -> None:
    """One text in 50 gets another second token, the one that is most likely anyway: the smallest change of the odds."""
    settings = SETTINGS["temperature"]
    drawn, _ = texts(model, draft, RULES["rejection"], TREES["chain"], settings)
    joint = exact_joint(model, settings)
    assert agreement(drawn, joint) > ALARM
    best = joint.sum(2).argmax(1)[drawn[:, 0]]  # [DRAWS], after every first token
    others = (drawn[:, 1] != best).nonzero()[: DRAWS // 50, 0]
    biased = drawn.clone()
    biased[others, 1] = best[others]
    assert agreement(biased, joint) < ALARM


@pytest.mark.slow
def test_a_generous_rule_is_seen(
    model: PreTrainedModel, draft: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that accepts a little too readily."""
    from specdec.sampling import StepSampling

    exact = StepSampling.accept

    def generous(self: StepSampling, probability: Tensor, depth: int, turn: int) -> Tensor:
        return exact(self, torch.where(probability > 0, probability + 0.1, 0.0), depth, turn)

    monkeypatch.setattr(StepSampling, "accept", generous)
    settings = SETTINGS["temperature"]
    drawn, _ = texts(model, draft, RULES["rejection"], TREES["chain"], settings)
    assert agreement(drawn, exact_joint(model, settings)) < ALARM
