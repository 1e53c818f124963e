"""The draft model's cache holds the committed text and nothing else, whatever was drafted and accepted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import specdec
from specdec.core import TreePolicy
from specdec.drafters.draft_model import DraftModel, State, fit_vocabulary
from specdec.sampling import DraftNoise, SamplingParams
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..fakes import Harness, check_shape, climb
from ..models import make_model, noisy_copy, ragged_batch

VOCAB = 40
PROMPTS = [[5, 6, 7, 5, 6], [1], [2, 3, 2, 3, 2, 3, 2], [9, 8]]
POLICIES: dict[str, TreePolicy] = {
    "chain": chain(4),
    "chain of one": chain(1),
    "static": StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [1, 0, 0]]),
    "best first": BestFirst(max_nodes=10, depth=4, top_k=3),
    "best first, much pruned": BestFirst(max_nodes=3, depth=6, top_k=2, width=12),
    "best first, more than a word": BestFirst(max_nodes=5, depth=4, top_k=5, width=25),
}


def next_logits(model: Any, text: list[int]) -> Tensor:
    """`[V]`, by a plain forward."""
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([text])).logits[0, -1]
    return logits


@torch.inference_mode()
def logits_after(state: State, roots: Tensor, unread: Tensor) -> Tensor:
    """`[B, V]` after the root, from the drafter's own cache, which is left as it was."""
    behind = unread >= 0
    tokens = TokenTree.chain(torch.stack([torch.where(behind, unread, roots), roots], 1))
    counts = (roots >= 0).to(torch.int32) * (1 + behind.to(torch.int32))
    output = state.model.extend(tokens.tokens, tokens.depths, tokens.words, counts)
    return output.logits[torch.arange(len(roots)), behind.long()]


@pytest.mark.parametrize("shared", [True, False], ids=["shared noise", "own noise"])
@pytest.mark.parametrize("shape", POLICIES)
@pytest.mark.parametrize("acceptance", [0.7, 1.0], ids=["some", "all"])
def test_cache_equals_a_fresh_prefill(shape: str, shared: bool, acceptance: float) -> None:
    """After every observe: same length (but for a leaf not read), and the logits of a plain forward over the text."""
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    harness = Harness(DraftModel(model, POLICIES[shape]), 4, VOCAB, SamplingParams(temperature=0.8), shared)
    harness.acceptance = acceptance
    harness.enter([0, 2], [PROMPTS[0], PROMPTS[1]])
    for number in range(6):
        if number == 2:
            harness.enter([3], [PROMPTS[2]])
        if number == 4:
            harness.leave(0)
            harness.enter([0], [PROMPTS[3]])
        check_shape(harness.step())
        state: State = harness.state
        logits = logits_after(state, harness.roots, state.unread)
        for slot, text in harness.texts.items():
            assert int(state.model.lengths[slot]) == len(text) - int(state.unread[slot] >= 0)
            if state.unread[slot] >= 0:
                assert int(state.unread[slot]) == text[-1]
            wanted = next_logits(model, [*text, int(harness.roots[slot])])
            assert torch.allclose(logits[slot], wanted, atol=1e-9)


class InTurns(DraftModel):
    """Asked for another number of levels at every step."""

    turn = 0

    def propose(self, state: State, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        levels = (None, 0, 1, 0, 0, 0, 2, None, 0, 0)[self.turn % 10]
        self.turn += 1
        tree = super().propose(state, roots, noise, levels)
        assert levels is None or int(tree.depths.max()) <= levels
        return tree


@pytest.mark.parametrize("shape", POLICIES)
@pytest.mark.parametrize("acceptance", [0.7, 1.0], ids=["some", "all"])
def test_what_was_written_without_drafts_is_read_later(shape: str, acceptance: float) -> None:
    """The cache and what waits to be read are the text, whoever enters and leaves meanwhile."""
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    harness = Harness(InTurns(model, POLICIES[shape]), 4, VOCAB, SamplingParams(temperature=0.8), True)
    harness.acceptance = acceptance
    harness.enter([0, 2], [PROMPTS[0], PROMPTS[1]])
    for number in range(20):
        if number == 4:  # within a pause
            harness.leave(0)
        if number == 5:
            harness.enter([0, 3], [PROMPTS[3], PROMPTS[2]])
        check_shape(harness.step())
        state: State = harness.state
        for slot, text in harness.texts.items():
            waiting = [int(t[slot]) for t in (state.unread, *state.skipped) if t[slot] >= 0]
            length = int(state.model.lengths[slot])
            assert text[length:] == waiting
        if not state.skipped:
            logits = logits_after(state, harness.roots, state.unread)
            for slot, text in harness.texts.items():
                wanted = next_logits(model, [*text, int(harness.roots[slot])])
                assert torch.allclose(logits[slot], wanted, atol=1e-9)


@pytest.mark.parametrize("shape", POLICIES)
def test_trees_are_those_of_plain_forwards(shape: str) -> None:
    """Greedy drafts: the children of every node are the most likely tokens after its text, best first."""
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    harness = Harness(DraftModel(model, POLICIES[shape]), 2, VOCAB, SamplingParams(), False)
    harness.enter([0, 1], [PROMPTS[0], PROMPTS[2]])
    policy_width = POLICIES[shape].branching(0)
    for _ in range(3):
        before = {slot: list(text) for slot, text in harness.texts.items()}
        tree = harness.step()
        for slot, text in before.items():
            tokens = tree.tokens[slot, : int(tree.sizes[slot])].tolist()
            parents = tree.parents[slot, : len(tokens)].tolist()
            for j in range(len(tokens)):
                children = [tokens[i] for i in range(len(tokens)) if parents[i] == j]
                below = text + [tokens[i] for i in reversed(climb(parents, j))]
                best = next_logits(model, below).topk(policy_width).indices.tolist()
                assert children == best[: len(children)]


def test_fit_vocabulary() -> None:
    logits = torch.arange(6.0).view(1, 2, 3)
    assert fit_vocabulary(logits, 3) is logits
    assert torch.equal(fit_vocabulary(logits, 2), logits[..., :2])
    wider = fit_vocabulary(logits, 5)
    assert torch.equal(wider[..., :3], logits)
    assert (wider[..., 3:] == float("-inf")).all()


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
@pytest.mark.parametrize("tree", ["chain", "best_first"])
@pytest.mark.parametrize("size", [VOCAB - 4, VOCAB + 4])
def test_vocabulary_padded_differently(size: int, tree: str, acceptance: str) -> None:
    """A draft with fewer entries never drafts the missing ones, and reads them as something; one with more is cut."""
    target = make_model(vocab_size=VOCAB, dtype=torch.float64)
    draft = make_model(vocab_size=size, seed=1)
    ids, mask, _ = ragged_batch((5, 9), vocab=VOCAB)
    ids[0, 0] = VOCAB - 1
    settings: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": [], "pad_token_id": 0}
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0, repetition_penalty=1.3, seed=2)):
        plain = specdec.generate(target, ids, mask, drafter="none", sampling=sampling, **settings)
        ours = specdec.generate(
            target, ids, mask, drafter=draft, tree=tree, acceptance=acceptance, sampling=sampling, **settings
        )
        if acceptance == "coupled" or sampling.temperature == 0:
            assert torch.equal(ours.sequences, plain.sequences)
        assert int(ours.sequences.max()) < VOCAB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_draft_in_another_dtype(dtype: torch.dtype, acceptance: str) -> None:
    target = make_model(vocab_size=VOCAB, dtype=torch.float64)
    draft = noisy_copy(target).to(dtype)
    ids, mask, _ = ragged_batch((5, 9, 3), vocab=VOCAB)
    settings: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": [], "pad_token_id": 0}
    plain = specdec.generate(target, ids, mask, drafter="none", **settings)
    ours = specdec.generate(target, ids, mask, drafter=draft, tree="static", acceptance=acceptance, **settings)
    assert torch.equal(ours.sequences, plain.sequences)
    assert ours.stats.mean_accepted_length_pooled > 1.1


def test_a_perfect_draft_is_accepted_to_the_end() -> None:
    """The target as its own draft, under coupled noise: every step emits the chain and the bonus."""
    target = make_model(vocab_size=VOCAB, dtype=torch.float64)
    ids, mask, _ = ragged_batch((5, 9), vocab=VOCAB)
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.2, seed=1)):
        out = specdec.generate(
            target, ids, mask, drafter=target, tree="chain", max_new_tokens=31, sampling=sampling, eos_token_id=[]
        )
        assert out.stats.accept_lengths == [[5] * 6] * 2


def test_room_up_to_the_last_position() -> None:
    """Trees may grow past the end of the cache's texts, however many nodes are run and pruned again."""
    target = make_model(vocab_size=VOCAB, dtype=torch.float64)
    policy = BestFirst(max_nodes=2, depth=10, top_k=8)
    ids = torch.ones(1, 116, dtype=torch.int64)
    plain = specdec.generate(target, ids, drafter="none", max_new_tokens=12, eos_token_id=[])
    ours = specdec.generate(target, ids, drafter=target, tree=policy, max_new_tokens=12, eos_token_id=[])
    assert torch.equal(plain.sequences, ours.sequences)
