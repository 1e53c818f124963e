"""The whole loop, sampled: every drafter's texts have the target's distribution, computed by plain forwards.

What is looked at is in `places.py`. A draw is a place of a text: the next three tokens from there on, given all before
them. Draws overlap, and each look counts every token after what was before it, so that this makes none easier to pass.

- Every drafter in conf/drafter under every lossless rule: DRAWS places, from requests of all twelve settings side by
  side. Places are tested together, and those of every setting by themselves.
- Every rule under every setting, DRAWS places each, with a draft model.
- Drafters that learn, from the very texts that they then draft; and the joint distribution of the first three tokens
  after one prompt, as in `joint.py`.

DRAWS places of every drafter, rule and setting would take twelve times as long as the first.

False alarms: each case fails by chance with a nominal probability below ALARM, by the chi-square distribution; that of
the looks' statistic has up to TAIL times as much so far out (`test_the_tail_that_alarms_stand_on`). All of them fail
with a probability below 1e-6 (`test_false_alarms_are_rare`). Power: `test_a_bias_of_two_percent_is_seen` lets the
target's most likely token have 2 % more of the probability than is its due, at the expense of all others: of all
changes of that size one of the hardest to see. With DRAWS places a bias of LEAST_BIAS is seen with a probability of
0.99, and with the twelfth that a setting has of one drafter and rule a bias of LEAST_BIAS_OF_ONE
(`test_the_least_bias_that_is_seen`). A bias that goes one way after some texts and the other way after others is seen
if that goes by the last two tokens.
Seeds are fixed, so that the outcome on one machine is always the same.
"""

from __future__ import annotations

import gc
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from specdec.acceptance.relaxed import Relaxed
from specdec.acceptance.typical import Typical
from specdec.core import AcceptanceRule
from specdec.decode import decode
from specdec.kernels.tree_attention import packed
from specdec.request import Request
from specdec.sampling import SamplingParams, StepSampling

from ..chance import chi_square_limit, groups_tail, kolmogorov_smirnov, noncentral_tail, uniform_in_groups
from . import joint
from .places import BINS, LOOKS, Places, agreement, processed
from .sampled import DRAFTERS, FILTERS, LONG, PROMPT, RULES, SETTINGS, TEMPERATURES, VOCAB, make_run, write
from .together import attend

ALARM = 4e-9
TAIL = 1.6  # true probability of a false alarm over the nominal one, at most
DRAWS = 100_000
LEAST_BIAS, LEAST_BIAS_OF_ONE = 0.017, 0.058
LEAST_ALARM = ALARM / 2 / len(SETTINGS) / LOOKS  # of one look at one setting
PAIRS = list(itertools.product(DRAFTERS, RULES))
LEARNING = ("adaptive", "hybrid")  # from other requests; hybrid is suffix and recycling


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> Iterator[None]:
    """Thousands of small lists a step would have all modules that are loaded looked through again and again."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "attend", attend)


def of_each(parts: Sequence[Places]) -> float:
    """The least agreement of all settings by themselves (Bonferroni)."""
    return min(1.0, len(parts) * min(agreement([part]) for part in parts))


def check_drafts(drafter: str, accepted: float) -> None:
    """Neither useless nor perfect, so that both outcomes are tested."""
    assert accepted == 0 if drafter == "none" else 0.05 < accepted < 1.9


@pytest.mark.slow
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize(("drafter", "rule"), PAIRS)
def test_every_drafter(drafter: str, rule: str) -> None:
    parts, accepted = write(make_run(drafter, rule), SETTINGS, DRAWS // len(SETTINGS) + 1, PAIRS.index((drafter, rule)))
    check_drafts(drafter, accepted)
    assert sum(part.count for part in parts) > DRAWS
    assert agreement(parts) > ALARM / 2
    assert of_each(parts) > ALARM / 2


@pytest.mark.slow
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rule", RULES)
def test_every_setting(rule: str, temperature: float) -> None:
    settings = [s for s in SETTINGS if s["temperature"] == temperature]
    seed = 100 + 10 * list(RULES).index(rule) + TEMPERATURES.index(temperature)
    parts, accepted = write(make_run("draft_model", rule, replacement=temperature == 1), settings, DRAWS, seed)
    check_drafts("draft_model", accepted)
    assert min(part.count for part in parts) > DRAWS
    assert of_each(parts) > ALARM


@pytest.mark.slow
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("rule", RULES)
def test_joint_distribution(rule: str) -> None:
    """The first three tokens after one prompt, counted as they are: what depends on the place in a text shows here."""
    run, settings = make_run("draft_model", rule), {"temperature": 1.0}
    params = SamplingParams.from_dict(settings)
    requests = (Request(joint.PROMPT, 3, replace(params, seed=(300 << 20) + index)) for index in range(DRAWS))
    drawn = [generation.new_ids for generation, _ in decode(run, requests) if generation.finished]
    expected = joint.exact_joint(run.target.model, joint.PROMPT, settings, 3)
    assert joint.agreement(torch.tensor(drawn), expected) > ALARM


@pytest.mark.slow
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("drafter", LEARNING)
def test_a_text_that_was_read_before(drafter: str) -> None:
    """Drafts come from what other requests wrote with the same noise, or from how that went."""
    run = make_run(drafter, "traversal")
    parts, accepted = write(run, SETTINGS, DRAWS // len(SETTINGS) + 1, 200 + LEARNING.index(drafter), twice=True)
    check_drafts(drafter, accepted)
    assert agreement(parts) > ALARM / 2
    assert of_each(parts) > ALARM / 2


@pytest.mark.parametrize(
    ("drafter", "rule"), [("draft_model", "traversal"), ("recycling", "block"), ("suffix", "coupled")]
)
def test_quickly(drafter: str, rule: str) -> None:
    """Few draws, with the attention that is shipped."""
    parts, accepted = write(make_run(drafter, rule), SETTINGS, 40)
    check_drafts(drafter, accepted)
    assert agreement(parts) > ALARM


def test_a_lossy_rule_is_quickly_seen() -> None:
    run = make_run("draft_model", "rejection")
    run.rule = Relaxed()
    assert agreement(write(run, SETTINGS, 40)[0]) < ALARM


# --- what is seen


@pytest.mark.slow
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_bias_of_two_percent_is_seen(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule takes the most likely token for 2 % likelier than it is, all others for less."""
    exact = StepSampling._process

    def biased(self: StepSampling, logits: Tensor, path: Tensor) -> Tensor:
        probs = exact(self, logits, path).softmax(-1)  # [B, V]
        most, best = probs.max(-1, keepdim=True)
        more = (most + 0.02).clamp_max(1.0)
        return (probs * (1 - more) / (1 - most).clamp_min(1e-6)).scatter(1, best, more).log()

    monkeypatch.setattr(StepSampling, "_process", biased)
    settings = [s for s in SETTINGS if s["temperature"] == temperature]
    parts, accepted = write(make_run("draft_model", "rejection"), settings, DRAWS)
    check_drafts("draft_model", accepted)
    assert max(len(parts) * agreement([part]) for part in parts) < ALARM


@pytest.mark.slow
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("rule", [Typical(), Relaxed()], ids=["typical", "relaxed"])
def test_lossy_rules_are_seen(rule: AcceptanceRule) -> None:
    """With every setting."""
    run = make_run("draft_model", "rejection")
    run.rule = rule
    parts, _ = write(run, SETTINGS, DRAWS // 20)
    assert max(len(parts) * agreement([part]) for part in parts) < ALARM


@pytest.mark.slow
@pytest.mark.usefixtures("together")
def test_a_generous_rule_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that accepts a little too readily, whatever the setting."""
    exact = StepSampling.accept

    def generous(self: StepSampling, probability: Tensor, depth: int, turn: int) -> Tensor:
        return exact(self, torch.where(probability > 0, probability + 0.1, 0.0), depth, turn)

    monkeypatch.setattr(StepSampling, "accept", generous)
    parts, _ = write(make_run("draft_model", "rejection"), SETTINGS, DRAWS // len(SETTINGS) + 1)
    assert agreement(parts) < ALARM / 2


def shift(bias: float) -> float:
    """Noncentrality of a look at single tokens, per draw, when some tokens have `bias` more probability than their due;
    at the worst, over all shares of the probability that are theirs."""
    edges = torch.arange(BINS + 1, dtype=torch.float64) / BINS
    share = torch.arange(0.05, 0.95, 0.005, dtype=torch.float64)[:, None]
    inside = edges.minimum(share).diff(dim=1)  # [shares, BINS], of each bin
    moved = bias * (inside / share - (1 / BINS - inside) / (1 - share))
    return float(BINS * moved.square().sum(1).min())


def power(bias: float, draws: int, alarm: float) -> float:
    """Probability that a setting's agreement is below `alarm`."""
    return noncentral_tail(chi_square_limit(alarm / LOOKS, BINS - 1), BINS - 1, draws * shift(bias))


def test_the_least_bias_that_is_seen() -> None:
    each = ALARM / len(FILTERS)  # by test_every_setting
    assert power(LEAST_BIAS, DRAWS, each) > 0.99 > power(LEAST_BIAS - 0.001, DRAWS, each)
    assert power(0.02, DRAWS, each) > 0.999
    few, each = DRAWS // len(SETTINGS), ALARM / 2 / len(SETTINGS)  # by test_every_drafter
    assert power(LEAST_BIAS_OF_ONE, few, each) > 0.99 > power(LEAST_BIAS_OF_ONE - 0.001, few, each)


# --- that it says what it says


def test_false_alarms_are_rare() -> None:
    """Every case, of every test that asks for agreement."""
    total = 0
    for name, test in vars(sys.modules[__name__]).items():
        if name.startswith("test_") and not name.endswith("_seen") and "ALARM" in test.__code__.co_names:
            marks = getattr(test, "pytestmark", [])
            total += math.prod(len(mark.args[1]) for mark in marks if mark.name == "parametrize")
    assert total >= len(PAIRS) + len(RULES) * len(TEMPERATURES) + len(LEARNING)
    assert total * ALARM * TAIL < 1e-6


@pytest.mark.parametrize("groups", [6, 36])
def test_the_tail_that_alarms_stand_on(groups: int) -> None:
    """Of the smallest groups that are tested by themselves, where it is the furthest from chi-square's; groups are what
    one token or bin before, or two, make of six."""
    exact = groups_tail(chi_square_limit(LEAST_ALARM, groups * (BINS - 1)), groups, 10 * BINS, BINS)
    assert LEAST_ALARM < exact < TAIL * LEAST_ALARM


def test_the_tail_is_right() -> None:
    """Two groups of three in two cells, by hand: a group is all in one cell with probability 1/4."""
    alone = 2 * 3 * math.log(2) / (1 + 3 / 18)
    assert groups_tail(2 * alone - 0.1, 2, 3, 2) == pytest.approx(1 / 16)
    assert groups_tail(alone + 0.1, 2, 3, 2) == pytest.approx(1 / 16 + 2 * 3 / 16)
    assert groups_tail(0.0, 2, 3, 2) == pytest.approx(1.0)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_reference_is_what_transformers_does(settings: Mapping[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, VOCAB, generator=generator, dtype=torch.float64)
    text = torch.randint(0, VOCAB, (300, 4), generator=generator)
    scores = logits
    if "repetition_penalty" in settings:
        scores = RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"])(text, scores.clone())
    if warpers := SamplingParams.from_dict(settings).warpers():
        scores = warpers(text, scores)
    seen = torch.nn.functional.one_hot(text, VOCAB).sum(1) > 0
    assert torch.allclose(processed(logits, seen, settings), scores.softmax(-1))


def test_attention_together_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = packed.attend

    def both(*given: Any, **settings: Any) -> Tensor:
        found = shipped(*given, **settings)
        assert torch.allclose(attend(*given, **settings), found, atol=1e-5)
        return found

    monkeypatch.setattr(packed, "attend", both)
    write(make_run("eagle", "traversal"), SETTINGS, 2)


def test_chance_alone() -> None:
    """Tokens that are right by construction: what each look returns is uniform."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(100):
        tokens = torch.randint(0, VOCAB, (200, PROMPT + LONG), generator=generator)
        ranked, plain = (torch.randint(0, BINS, (200, LONG), generator=generator) for _ in range(2))
        places = Places(tokens, ranked, plain, 0, VOCAB)
        found.append([*(uniform_in_groups(*look, BINS) for look in places.looks())])
    for look in torch.tensor(found).T:
        assert kolmogorov_smirnov(look) > 1e-4
