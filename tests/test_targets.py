"""Targets of many architectures: text with speculation is the text without it, and the model is left as it was."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec import SamplingParams, TokenTree, noise, target
from specdec.cache import TreeCache
from specdec.core import DraftNeeds, TargetOutput, Verdict
from specdec.sampling import DraftNoise

from .models import ARCHITECTURES, make_model, noisy_copy, plain_text, ragged_batch

NEW_TOKENS = 30  # well past the sliding windows
TIE = 1e-4  # a smaller gap between the two best tokens is rounding's to decide
RAGGED = (9, 4, 1, 12, 7)
LEFT = (False, True, False, True, True)
DRAFTS = {"none": ("none", None), "ngram": ("ngram", None), "chain": (None, "chain"), "static": (None, "static")}
DRAFTS["best_first"] = (None, "best_first")
DRAFTS["hybrid"] = ("hybrid", None)  # suffix and recycling


@cache
def models(architecture: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target and a draft model that agrees with it now and then."""
    model = make_model(architecture)
    return model, noisy_copy(model, 0.1)


@cache
def references(architecture: str) -> list[list[int]]:
    """What the model's own `generate` writes, prompt by prompt."""
    model, _ = models(architecture)
    return [plain_text(model, prompt, NEW_TOKENS) for prompt in ragged_batch(RAGGED, left=LEFT)[2]]


@torch.inference_mode()
def gap(model: PreTrainedModel, text: list[int], sampling: SamplingParams) -> float:
    """How far the two best next tokens are apart, noise included."""
    scores = model(torch.tensor([text])).logits[0, -1].float()
    if sampling.temperature:
        seeds = noise.seed_words([sampling.seed], scores.device)
        keys = noise.keys(seeds, torch.tensor([[len(text)]]), noise.TARGET_STREAM)[:, :, 0]
        scores = scores / sampling.temperature + noise.gumbel(keys, len(scores))[0]
    best, second = scores.topk(2).values.tolist()
    return best - second


def assert_same(
    model: PreTrainedModel,
    prompt: list[int],
    ours: list[int],
    theirs: list[int],
    sampling: SamplingParams = SamplingParams(),  # noqa: B008 frozen
) -> int:
    """The texts are equal up to a tie of rounding; returns how many ties there were (the texts part there)."""
    assert len(ours) == len(theirs)
    if ours == theirs:
        return 0
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    size = gap(model, prompt + theirs[:place], sampling)
    assert size < TIE, f"texts part at token {place}, where the two best are {size:.2g} apart: {ours} {theirs}"
    return 1


def new_tokens(
    architecture: str, draft: str, sampling: SamplingParams, lengths: tuple[int, ...] = RAGGED
) -> tuple[list[list[int]], specdec.DecodingStats]:
    model, small = models(architecture)
    drafter, tree = DRAFTS[draft]
    ids, mask, _ = ragged_batch(lengths, left=LEFT[: len(lengths)])
    out = specdec.generate(
        model,
        ids,
        mask,
        drafter=small if drafter is None else drafter,
        tree=tree,
        sampling=sampling,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=[],
    )
    assert torch.equal(out.sequences[:, : ids.shape[1]], ids)
    return out.sequences[:, ids.shape[1] :].tolist(), out.stats


SLOW = ("chain", "hybrid")  # a tree among others, and a drafter that knows no target: tests/drafters have it


@pytest.mark.parametrize("draft", [pytest.param(d, marks=pytest.mark.slow) if d in SLOW else d for d in DRAFTS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_text_is_the_models_own(architecture: str, draft: str) -> None:
    model, _ = models(architecture)
    prompts = ragged_batch(RAGGED, left=LEFT)[2]
    ours, stats = new_tokens(architecture, draft, SamplingParams())
    pairs = zip(prompts, ours, references(architecture), strict=True)
    ties = sum(assert_same(model, *texts) for texts in pairs)
    assert ties <= 1
    if DRAFTS[draft][0] is None:  # else the test would not have tried acceptance
        assert stats.mean_accepted_length_pooled > 1.2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_text_of_one_row_is_the_models_own(architecture: str) -> None:
    model, _ = models(architecture)
    prompt = ragged_batch(RAGGED[:1], left=LEFT[:1])[2][0]
    for draft in ("ngram", "best_first"):
        ours, _ = new_tokens(architecture, draft, SamplingParams(), RAGGED[:1])
        assert_same(model, prompt, ours[0], references(architecture)[0])


@cache
def sampled_alone(architecture: str) -> list[list[int]]:
    return new_tokens(architecture, "none", SamplingParams(temperature=1.0, seed=3))[0]


@pytest.mark.parametrize(
    "draft", ["ngram", "best_first", *(pytest.param(d, marks=pytest.mark.slow) for d in ("chain", "static"))]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_text_is_that_of_plain_decoding_with_the_same_seed(architecture: str, draft: str) -> None:
    model, _ = models(architecture)
    sampling = SamplingParams(temperature=1.0, seed=3)
    prompts = ragged_batch(RAGGED, left=LEFT)[2]
    ours, _ = new_tokens(architecture, draft, sampling)
    ties = sum(
        assert_same(model, *texts, sampling) for texts in zip(prompts, ours, sampled_alone(architecture), strict=True)
    )
    assert ties <= 1


def test_a_row_of_a_batch_is_the_row_alone() -> None:
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0, seed=3)):
        together, _ = new_tokens("llama", "static", sampling)
        alone, _ = new_tokens("llama", "static", sampling, RAGGED[:1])
        assert together[0] == alone[0]


class Oracle:
    """Knows the text, and hides it among wrong branches: every step is accepted down to the leaf."""

    vocab_size = None

    def __init__(self, texts: list[list[int]], depth: int = 4):
        self.texts, self.depth = texts, depth
        self.needs = DraftNeeds(max_nodes=3 * depth + 1)

    def open(self, capacity: int, max_length: int, device: torch.device) -> list[int]:
        return [0] * capacity

    def start(self, state: list[int], slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        pass

    def propose(self, state: list[int], roots: Tensor, noise: DraftNoise) -> TokenTree:
        trees = []
        for slot, root in enumerate(roots.tolist()):
            tokens, parents, last = [root], [-1], 0
            for true in self.texts[slot][state[slot] + 1 : state[slot] + 1 + self.depth]:
                tokens += [(true + 1) % 80, (true + 2) % 80, true]
                parents += [last] * 3
                last = len(tokens) - 1
            trees.append((tokens, parents) if root >= 0 else ([-1], [-1]))
        return TokenTree.from_lists(trees, roots.device)

    def observe(self, state: list[int], tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        for slot, count in enumerate(verdict.num_accepted.tolist()):
            state[slot] += count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_deep_paths_through_wrong_branches(architecture: str) -> None:
    model, _ = models(architecture)
    ids, mask, prompts = ragged_batch(RAGGED, left=LEFT)
    texts = references(architecture)
    out = specdec.generate(model, ids, mask, drafter=Oracle(texts), max_new_tokens=NEW_TOKENS, eos_token_id=[])
    for prompt, row, text in zip(prompts, out.sequences[:, ids.shape[1] :].tolist(), texts, strict=True):
        assert_same(model, prompt, row, text)
    assert out.stats.mean_accepted_length_pooled > 4.5  # of 5, the last step cut


def test_text_in_float64_is_equal_without_ties() -> None:
    model = make_model("llama", dtype=torch.float64)
    ids, mask, prompts = ragged_batch(RAGGED, left=LEFT)
    out = specdec.generate(
        model, ids, mask, drafter=noisy_copy(model, 0.05), tree="best_first", max_new_tokens=70, eos_token_id=[]
    )
    assert out.sequences[:, ids.shape[1] :].tolist() == [plain_text(model, p, 70) for p in prompts]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "gpt_oss", "gpt_neox", "deepseek_v3"])
def test_prefill_in_pieces_is_prefill_in_one(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, small = models(architecture)
    ids, mask, prompts = ragged_batch((40, 3, 17, 40), seed=5)

    def run() -> Tensor:
        return specdec.generate(
            model, ids, mask, drafter=small, tree="static", max_new_tokens=20, eos_token_id=[]
        ).sequences[:, ids.shape[1] :]

    whole = run()
    monkeypatch.setattr("specdec.packing.PREFILL_ROWS", 12)  # three tokens of each of the four prompts at a time
    for prompt, ours, theirs in zip(prompts, run().tolist(), whole.tolist(), strict=True):
        assert_same(model, prompt, ours, theirs)


def test_hidden_states_of_a_prefill_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models("llama")
    prompts = ragged_batch((11, 4, 7), seed=5)[2]

    def run() -> TargetOutput:
        verifier = target.Target(model, hidden_layers=(0, 1, -1))
        verifier.open(4, 16)
        return verifier.prefill([2, 0, 3], prompts)

    whole = run()
    monkeypatch.setattr("specdec.packing.PREFILL_ROWS", 6)
    pieces = run()
    torch.testing.assert_close(pieces.logits, whole.logits)
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            own = model(torch.tensor([prompt]), output_hidden_states=True)
            torch.testing.assert_close(pieces.logits[row, 0], own.logits[0, -1])
            for layer, index in ((0, 1), (-1, -1)):
                torch.testing.assert_close(pieces.hidden[layer][row, : len(prompt)], own.hidden_states[index][0])
    for layer in (0, 1, -1):
        torch.testing.assert_close(pieces.hidden[layer], whole.hidden[layer])
        assert pieces.hidden[layer].shape == (3, 11, model.config.hidden_size)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_oss", "deepseek_v3"])
def test_what_lies_in_unused_places_of_the_cache_is_not_read(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingParams()
    clean, _ = new_tokens(architecture, "best_first", sampling)
    allocate = TreeCache._allocate

    def poisoned(self: TreeCache, shapes: list[tuple[int, int, torch.dtype]]) -> list[Tensor]:
        views = allocate(self, shapes)
        for arena in self.arenas:
            arena.fill_(float("nan"))
        return views

    monkeypatch.setattr(TreeCache, "_allocate", poisoned)
    assert new_tokens(architecture, "best_first", sampling)[0] == clean


def test_a_slot_used_again_does_not_see_who_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, small = models("llama")
    decoder = specdec.engine.Engine(model, small, "best_first", "coupled")

    def run(prompt: list[int]) -> list[int]:
        requests = [specdec.request.Request(prompt, 20), specdec.request.Request(prompt[:3], 30)]
        texts: list[list[int]] = [[], []]
        for generation, tokens in decoder.run(requests, specdec.DecodingStats()):
            texts[generation.index] += tokens
        return texts[0]

    first = run([5, 6, 7, 8, 9])
    run([30, 31, 32, 33, 34])
    assert run([5, 6, 7, 8, 9]) == first == plain_text(model, [5, 6, 7, 8, 9], 20)


def test_a_decoder_made_or_used_in_inference_mode_works_outside() -> None:
    engine = specdec.engine.Engine(make_model("llama"), "none", None, "coupled")

    def run() -> list[list[int]]:
        return [tokens for _, tokens in engine.run([specdec.request.Request([5, 6], 3)], specdec.DecodingStats())]

    outside = run()
    with torch.inference_mode():
        inside = run()
    with torch.no_grad():
        assert run() == inside == outside


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(implementation: str, training: bool) -> None:
    model = make_model("llama", attn_implementation=implementation, attention_dropout=0.5)
    small = noisy_copy(model)
    for each in (model, small):
        each.train(training)
        each.model.layers[0].eval()  # a layer the user has frozen
    modes = [m.training for m in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.config.to_dict()
    ids, mask, prompts = ragged_batch((5, 3))
    out = specdec.generate(model, ids, mask, drafter=small, max_new_tokens=10, eos_token_id=[])
    assert model.config._attn_implementation == implementation
    assert model.config.to_dict() == settings
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert out.sequences[:, 5:].tolist() == [plain_text(model.eval(), p, 10) for p in prompts]


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = make_model("llama")
    implementation = model.config._attn_implementation

    class Broken(Exception):
        pass

    def fail(*_: object) -> None:
        raise Broken

    verifier = target.Target(model, hidden_layers=(0,))
    verifier.open(1, 10)
    handle = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(Broken):
        verifier.prefill([0], [[1, 2, 3]])
    handle.remove()
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_hooks for m in model.modules())
    assert plain_text(model, [3, 4], 5) == plain_text(make_model("llama"), [3, 4], 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_text(dtype: torch.dtype) -> None:
    """Rounding decides tokens here, so equality is not asked for: lengths, ids and near-argmax choices are."""
    model = make_model("llama", dtype=dtype)
    ids, mask, prompts = ragged_batch((5, 3))
    out = specdec.generate(model, ids, mask, drafter=noisy_copy(model), max_new_tokens=20, eos_token_id=[])
    exact = make_model("llama", dtype=dtype).float()
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            text = prompt + out.sequences[row, 5:].tolist()
            logits = exact(torch.tensor([text])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(text[len(prompt) :])[:, None])[:, 0]
            assert (logits.amax(-1) - chosen).max() < 0.05 * logits.std() * 4
