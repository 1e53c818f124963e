"""The block head: what it is trained to predict is what it drafts, and no text changes for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec import SamplingParams
from specdec.core import TreePolicy, Verdict
from specdec.drafters.block import Block
from specdec.drafters.block_head import BlockHead
from specdec.heads import bound
from specdec.sampling import StepSampling
from specdec.step import Step, unheard
from specdec.target import Target
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..heads import make_head
from ..models import VOCAB, make_model, ragged_batch

K = 5
TREES: dict[str, TreePolicy] = {
    "chain": chain(K),
    "short chain": chain(2),
    "static": StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]]),
    "best first": BestFirst(max_nodes=9, depth=4, top_k=3),
}
HEADS: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional, two layers": {"causal": False, "layers": 2},
    "as DFlash": {"causal": False, "from_root": False, "rank": 0, "lead": False},
    "causal, two layers, rows of their own": {"from_root": False, "layers": 2, "gated": False},
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(dtype=torch.float64, num_hidden_layers=3)


class Forced:
    """Accepts as many nodes of a chain as it is told, whatever they are; keeps the texts."""

    lossless, shared_noise = False, True

    def __init__(self, capacity: int):
        self.texts: dict[int, list[int]] = {}
        self.keep = torch.zeros(capacity, dtype=torch.int64)  # [B], nodes below the root
        self.generator = torch.Generator().manual_seed(1)

    def tokens(self, count: int) -> Tensor:
        return torch.randint(2, VOCAB, (count,), generator=self.generator)

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        nodes = torch.arange(tree.max_nodes).expand(tree.batch_size, -1)
        path = torch.where((nodes <= self.keep[:, None]) & (tree.sizes > 0)[:, None], nodes, -1)
        count = (path >= 0).sum(-1, dtype=torch.int32)
        for slot, text in self.texts.items():
            text += tree.tokens[slot, : int(count[slot])].tolist()
        return Verdict(path, count, self.tokens(tree.batch_size))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("lengths", [(7,), (1, 3, 9, 2, 6)], ids=["one", "ragged"])
@torch.inference_mode()
def test_it_drafts_what_it_predicts(model: PreTrainedModel, name: str, lengths: Sequence[int]) -> None:
    """At every root the chain is the argmax of `predict` on the text and the chain's own tokens, while any number of
    nodes is accepted and slots come and go."""
    head = make_head("block", Target(model), depth=K, **HEADS[name])
    target = Target(model, hidden_layers=head.hidden_layers)
    drafter, rule = Block(head, chain(K)).attach(target), Forced(len(lengths) + 1)
    step = Step(target, drafter, rule, len(lengths) + 1, 80)

    def enter(slots: list[int], lengths: Sequence[int]) -> None:
        prompts = [rule.tokens(length).tolist() for length in lengths]
        drafter.start(step.state, slots, prompts, target.prefill(slots, prompts))
        step.roots[slots] = rule.tokens(len(slots))
        for slot, prompt in zip(slots, prompts, strict=True):
            step.sampler.start(slot, SamplingParams(), prompt)
            rule.texts[slot] = prompt

    enter(list(range(1, len(lengths) + 1)), lengths)
    seen = set()
    for number in range(9):
        if number == 4 and len(lengths) > 1:
            target.release(2)
            step.roots[2] = -1
            step.sampler.stop(2)
            del rule.texts[2]
        if number == 6 and len(lengths) > 1:
            enter([2], [4])
        slots = sorted(rule.texts)
        tree = step.propose(slots)
        for slot in slots:
            assert tree.tokens[slot].tolist() == predicted(head, target, rule.texts[slot], int(step.roots[slot]))
        rule.keep[:] = (number + torch.arange(len(rule.keep))) % (K + 1)
        seen |= {int(rule.keep[slot]) for slot in slots}
        verdict, output, _ = step.decide(tree, slots, unheard)
        drafter.observe(step.state, tree, verdict, output)
    assert seen == set(range(K + 1))


def predicted(head: BlockHead, target: Target, text: list[int], root: int) -> list[int]:
    """The root, and what `predict` says one token after the other; what comes later must not matter."""
    model, chain = target.model, [root]
    head = bound(head, target)
    for k in range(K):
        tokens = torch.tensor([text + chain + [k + 2] * (K - k)])
        output = model(tokens, output_hidden_states=True)
        layers = [*output.hidden_states[1:-1], None, output.hidden_states[-1]]
        hidden = {layer: layers[layer] for layer in head.hidden_layers}
        for states in hidden.values():
            states[:, len(text) :] = 9 * torch.randn_like(states[:, len(text) :])
        chain.append(int(head.predict(tokens, hidden, torch.tensor([[len(text)]]))[0, 0, k].argmax()))
    return chain


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampled"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("lengths", [(6,), (6, 1, 12, 3, 8)], ids=["one", "ragged"])
def test_the_text_is_the_targets(
    model: PreTrainedModel, tree: str, lengths: tuple[int, ...], temperature: float
) -> None:
    """With any tree, and with every kind of head."""
    ids, mask, _ = ragged_batch(lengths)
    sampling = SamplingParams(temperature=temperature, seed=5)

    def write(drafter: object) -> Tensor:
        return specdec.generate(model, ids, mask, drafter=drafter, sampling=sampling, max_new_tokens=24).sequences

    expected = write("none")
    for settings in HEADS.values():
        drafter = Block(make_head("block", Target(model), depth=K, **settings), TREES[tree])
        assert torch.equal(write(drafter), expected)
