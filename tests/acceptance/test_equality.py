"""The text of plain decoding, token for token: every drafter and random trees, greedy and sampled.

Requests with prompts, lengths and settings of all kinds enter and leave slots. In float64 there is no exception. In
float32 a text may part from plain decoding's where the two best tokens' scores there lie within 1e-4 of each other;
such ties are counted, and pytest's summary shows them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specdec import registry
from specdec.acceptance.coupled import Coupled
from specdec.core import Drafter
from specdec.decode import decode
from specdec.drafters.none import NoDrafter
from specdec.experiments.lossless import TIE_GAP, compare
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.step import Step
from specdec.target import Target, attach

from ..drafters.test_contract import VOCAB, build_drafter
from ..fakes import Scripted, write_datastore
from ..models import make_model, noisy_copy

LENGTH = 64
LONGEST_PROMPT = 24
SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.2, top_k=8),
    SamplingParams(temperature=1.0, top_p=0.8, repetition_penalty=1.2),
    SamplingParams(repetition_penalty=1.5),
    SamplingParams(temperature=0.9, min_p=0.05),
]
DRAFTERS = registry.names("drafter")
TREES = {"never right": 0.0, "right half the time": 0.5, "always right": 1.0}  # random trees, and how often they hit
METHODS = [*DRAFTERS, *TREES]
CASES = [
    (method, kind, dtype)
    for method in METHODS
    for kind in ("greedy", "sampled")
    for dtype in (torch.float64, torch.float32)
]
TEXTS = -(-10_000 // len(CASES))  # of LENGTH tokens, in every case
MOST_TIES = 0.01  # of the texts in float32

Texts = list[list[int]]


def make_model_of(dtype: torch.dtype) -> PreTrainedModel:
    """Random weights whose text repeats itself at times, so that every drafter is right now and then."""
    return make_model(vocab_size=VOCAB, initializer_range=0.12, dtype=dtype)


def make_requests(kind: str, lengths: Sequence[int], seed: int) -> list[Request]:
    """Random prompts, no two alike; sampled ones differ in settings and seed."""
    chance = random.Random(seed)
    prompts: dict[tuple[int, ...], None] = {}
    while len(prompts) < len(lengths):
        prompts[tuple(chance.choices(range(VOCAB), k=chance.randint(1, LONGEST_PROMPT)))] = None
    requests = []
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        sampling = SETTINGS[i % len(SETTINGS)] if kind == "sampled" else SamplingParams()
        requests.append(Request(list(prompt), length, replace(sampling, seed=chance.getrandbits(40))))
    return requests


def run(
    target: Target, drafter: Drafter, requests: Sequence[Request], slots: int, stats: DecodingStats | None = None
) -> Texts:
    """The requests' new tokens, in their order."""
    texts: dict[int, list[int]] = {}
    step = Step(target, drafter, Coupled(), slots, LONGEST_PROMPT + LENGTH)
    for generation, _ in decode(step, requests, stats):
        if generation.finished:
            texts[generation.index] = generation.new_ids
    return [texts[i] for i in range(len(requests))]


def make_method(method: str, model: PreTrainedModel, requests: list[Request], plain: Texts, folder: Path) -> Drafter:
    """A drafter as its yaml says, with what makes it right at times: a draft model near the target, a datastore of
    these texts. Or random trees around them."""
    if method in TREES:
        texts = {tuple(r.prompt): text for r, text in zip(requests, plain, strict=True)}
        return Scripted(texts, TREES[method], max_nodes=12, vocab=VOCAB)
    corpus = write_datastore(folder / "datastore.bin", plain[::2], VOCAB)
    return build_drafter(method, noisy_copy(model, 0.1), path=corpus)


def count_ties(model: PreTrainedModel, requests: list[Request], plain: Texts, texts: Texts) -> int:
    """How many texts part from plain decoding's at a tie; fails where one does without."""
    ties = 0
    for request, expected, got in zip(requests, plain, texts, strict=True):
        check = compare(Target(model), request.prompt, expected, got, request.sampling)
        if not check.equal:
            told = f"{request} differs at token {check.position}: {check}"
            assert model.dtype == torch.float32, told
            assert check.tie, told
            assert (check.top2_gap or 0.0) < TIE_GAP, told
            ties += 1
    return ties


def compare_with_plain(
    method: str, kind: str, dtype: torch.dtype, lengths: Sequence[int], slots: Sequence[int], seed: int, folder: Path
) -> int:
    """Serve requests of these lengths with the method and without; returns the ties."""
    model = make_model_of(dtype)
    requests = make_requests(kind, lengths, seed)
    plain = run(Target(model), NoDrafter(), requests, slots=len(requests) // 2)
    assert [len(text) for text in plain] == list(lengths)
    drafter = make_method(method, model, requests, plain, folder)
    target = Target(model, hidden_layers=drafter.needs.hidden_layers)
    drafter = attach(drafter, target)
    ties = 0
    for number in slots:
        stats = DecodingStats()
        ties += count_ties(model, requests, plain, run(target, drafter, requests, number, stats))
        accepted = sum(request.accepted for request in stats.requests)
        assert (accepted > 0) == (method not in ("none", "never right")), f"{accepted} drafted tokens were accepted"
    return ties


def test_ties_are_told_from_mistakes() -> None:
    """Of two tokens with the same scores either may come, in float32; no other one may."""
    for dtype in (torch.float32, torch.float64):
        model = make_model_of(dtype)
        with torch.no_grad():
            model.lm_head.weight[1::2] = model.lm_head.weight[::2]  # [V, H]
        requests = make_requests("greedy", [9, 9, 9], seed=0)
        plain = run(Target(model), NoDrafter(), requests, slots=3)
        tied, wrong = ([*plain[:2], [*plain[2][:5], plain[2][5] + more, *plain[2][6:]]] for more in (1, 2))
        assert count_ties(model, requests, plain, plain) == 0
        if dtype == torch.float32:
            assert count_ties(model, requests, plain, tied) == 1
        for texts in [wrong] if dtype == torch.float32 else [tied, wrong]:
            with pytest.raises(AssertionError, match="differs at token 5"):
                count_ties(model, requests, plain, texts)


@pytest.mark.parametrize("method", METHODS)
def test_a_few_texts(method: str, tmp_path: Path) -> None:
    """One at a time, and through fewer slots than there are requests."""
    lengths = [14, 1, 18, 2, 9]
    compare_with_plain(method, "sampled", torch.float64, lengths, (1, 3), 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind", "dtype"), CASES, ids=[f"{m}-{k}-{str(d).removeprefix('torch.')}" for m, k, d in CASES]
)
def test_ten_thousand_texts(
    method: str, kind: str, dtype: torch.dtype, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Plain decoding itself is served one request at a time here and in a batch there: batching changes nothing."""
    assert len(CASES) * TEXTS >= 10_000
    seed = CASES.index((method, kind, dtype))
    shorter = random.Random(seed).choices(range(1, LENGTH), k=TEXTS // 5)
    lengths = random.Random(seed).sample([LENGTH] * TEXTS + shorter, TEXTS + len(shorter))
    ties = compare_with_plain(method, kind, dtype, lengths, (1 if method == "none" else 48,), seed, tmp_path)
    assert ties <= MOST_TIES * len(lengths), f"{ties} of {len(lengths)} texts part at ties: rounding alone makes fewer"
    record_property("compared texts", TEXTS)
    record_property("ties", ties)
