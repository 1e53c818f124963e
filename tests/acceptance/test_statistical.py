"""The whole loop, sampled: every drafter's texts have the target's distribution, computed by plain forwards.

What is looked at is in `places.py`. A draw is a place of a text: the next three tokens from there on, given all before
them. Draws overlap, and each look counts every token after what was before it, so that this makes none easier to pass.

- Every drafter in conf/drafter under every lossless rule: DRAWS places, from requests of all twelve settings side by
  side. Places are tested together, and those of every setting by themselves.
- Every rule under every setting, DRAWS places each, with a draft model.

- Drafters that learn, from the very texts that they then draft; and the joint distribution of the first three tokens
  after one prompt, as in `joint.py`.

A setting of its own for every drafter and rule, of DRAWS places each, would take twelve times as long as the first.

False alarms: each case fails by chance with a probability below ALARM, all of them below 1e-6
(`test_false_alarms_are_rare`). Power: `test_a_bias_of_two_percent_is_seen` lets the target's most likely token have
2 % more of the probability than is its due, at the expense of all others: of all changes of that size one of the
hardest to see. With DRAWS places a bias of LEAST_BIAS is seen with a probability of 0.99, and with the twelfth that a
setting has of one drafter and rule a bias of LEAST_BIAS_OF_ONE (`test_the_least_bias_that_is_seen`). A bias that goes
one way after some texts and the other way after others is seen if that goes by the last two tokens.
Seeds are fixed, so that the outcome on one machine is always the same.
"""

from __future__ import annotations

import gc
import itertools
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor

from specdec import registry
from specdec.acceptance.block import Block
from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.relaxed import Relaxed
from specdec.acceptance.traversal import Traversal
from specdec.acceptance.typical import Typical
from specdec.core import AcceptanceRule, TreePolicy
from specdec.decode import decode
from specdec.kernels.tree_attention import packed
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams, StepSampling
from specdec.step import Step
from specdec.target import Target, attach
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain

from ..chance import chi_square_limit, kolmogorov_smirnov, noncentral_tail, uniform_in_groups
from ..drafters.test_contract import build_drafter
from ..fakes import write_datastore
from ..models import make_model, noisy_copy
from .joint import agreement as joint_agreement
from .joint import exact_joint
from .places import BINS, LOOKS, Places, agreement, processed, read
from .together import attend

ALARM = 4e-9
DRAWS = 100_000
LEAST_BIAS, LEAST_BIAS_OF_ONE = 0.017, 0.058
VOCAB = 6
PROMPT = 3  # tokens, at random
SLOTS = 512

TEMPERATURES = (0.7, 1.0, 1.5)
FILTERS = {
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.5},
}
SETTINGS = [{"temperature": t, **f} for t, f in itertools.product(TEMPERATURES, FILTERS.values())]
LONG, SHORT = 48, 16  # new tokens; short where the penalty changes with them: soon it is on all six tokens

RULES: dict[str, AcceptanceRule] = {
    "coupled": Coupled(),
    "rejection": Rejection(),
    "block": Block(),
    "traversal": Traversal(),
}
PATHS = [[0], [1], [2], [0, 0], [0, 1], [1, 0]]
DRAFTERS = registry.names("drafter")
HEADS = ("block", "eagle", "hydra", "medusa")  # of the target, at random
SMALLER: dict[str, dict[str, Any]] = {  # than the yaml's, to save time; and adaptive where sizes do change
    "adaptive": {"drafter": "draft_model", "curve": 0.5 / SLOTS},
    "hybrid": {"max_nodes": 7},
    "lookahead": {"window": 2, "ngram": 3, "guesses": 2},
    "ngram": {"max_nodes": 7, "length": 3},
    "retrieval": {"max_nodes": 7, "length": 3, "samples": 8},
    "suffix": {"max_nodes": 7},
    "universal": {"tree": chain(2), "max_nodes": 4},
}


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> Iterator[None]:
    """Thousands of small lists a step would have all modules that are loaded looked through again and again."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "attend", attend)


@cache
def target_model(layers: int = 1) -> PreTrainedModel:
    return make_model(vocab_size=VOCAB, num_hidden_layers=layers, initializer_range=0.15)


@cache
def corpus() -> Path:
    texts = torch.randint(0, VOCAB, (40, 20), generator=torch.Generator().manual_seed(1)).tolist()
    return write_datastore(Path(tempfile.mkdtemp()) / "datastore.bin", texts, VOCAB)


def make_tree(drafter: str, rule: str, replacement: bool) -> TreePolicy:
    """Chains for `block`, else trees: of the likeliest paths where noise is shared, of drawn children elsewhere."""
    if rule == "block":
        return chain(2)
    likeliest = rule == "coupled" and drafter in (*HEADS, "draft_model", "early_exit")
    return BestFirst(max_nodes=7, depth=2, top_k=3) if likeliest else StaticTree(PATHS, replacement)


def make_run(drafter: str, rule: str, replacement: bool = False) -> Step:
    """`replacement`: siblings that are drawn are drawn with it."""
    model = target_model(2 if drafter == "early_exit" else 1)
    other = model if drafter in (*HEADS, "synthetic") else noisy_copy(model, scale=0.3)
    settings = {"tree": make_tree(drafter, rule, replacement), "path": corpus(), **SMALLER.get(drafter, {})}
    made = build_drafter(drafter, other, **settings)
    target = Target(model, hidden_layers=made.needs.hidden_layers)
    return Step(target, attach(made, target), RULES[rule], SLOTS, PROMPT + LONG)


def write(
    run: Step, settings: Sequence[Mapping[str, float]], draws: int, seed: int = 0, twice: bool = False
) -> tuple[list[Places], float]:
    """At least `draws` places of every setting, all in one run; and how many drafted tokens were accepted per step.

    Args:
        run: its drafter may have learned from earlier texts.
        settings: of the requests, in random order.
        draws: of three tokens.
        seed: other texts.
        twice: every request is served once before, unseen, SLOTS requests earlier: drafters have read what it writes.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [SHORT if "repetition_penalty" in s else LONG for s in settings]
    kinds = [kind for kind, length in enumerate(lengths) for _ in range(-(-draws // (length - 2)))]
    kinds = [kinds[i] for i in torch.randperm(len(kinds), generator=generator).tolist()]
    prompts = torch.randint(0, VOCAB, (len(kinds), PROMPT), generator=generator).tolist()
    params = [SamplingParams.from_dict(s) for s in settings]
    requests = [
        Request(prompt, lengths[kind], replace(params[kind], seed=(seed << 20) + index))
        for index, (kind, prompt) in enumerate(zip(kinds, prompts, strict=True))
    ]
    queue = [(index, True) for index in range(len(requests))]
    if twice:
        queue = [
            (i, seen) for low in range(0, len(queue), SLOTS) for seen in (False, True) for i, _ in queue[low:][:SLOTS]
        ]
    stats = DecodingStats()
    written: list[list[list[int]]] = [[] for _ in settings]
    for generation, _ in decode(run, (requests[index] for index, _ in queue), stats):
        index, seen = queue[generation.index]
        if generation.finished and seen:
            written[kinds[index]].append(generation.ids)
    parts = [
        read(run.target.model, torch.tensor(texts), PROMPT, s, generator)
        for texts, s in zip(written, settings, strict=True)
    ]
    return parts, sum(r.accepted for r in stats.requests) / stats.steps


def of_each(parts: Sequence[Places]) -> float:
    """The least agreement of all settings by themselves (Bonferroni)."""
    return min(1.0, len(parts) * min(agreement([part]) for part in parts))


def check_drafts(drafter: str, accepted: float) -> None:
    """Neither useless nor perfect, so that both outcomes are tested."""
    assert accepted == 0 if drafter == "none" else 0.05 < accepted < 1.9


PAIRS = list(itertools.product(DRAFTERS, RULES))
LEARNING = ("adaptive", "hybrid")  # from other requests; hybrid is suffix and recycling


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
    run, prompt, settings = make_run("draft_model", rule), [3, 1, 4], {"temperature": 1.0}
    params = SamplingParams.from_dict(settings)
    requests = (Request(prompt, 3, replace(params, seed=(300 << 20) + index)) for index in range(DRAWS))
    drawn = [generation.new_ids for generation, _ in decode(run, requests) if generation.finished]
    joint = exact_joint(run.target.model, prompt, settings, 3)
    assert joint_agreement(torch.tensor(drawn), joint) > ALARM


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
        return (probs * (1 - more) / (1 - most)).scatter(1, best, more).log()

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
    assert total * ALARM < 1e-6


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
