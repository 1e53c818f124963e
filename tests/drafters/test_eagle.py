"""EAGLE heads: what `predict` is trained to say is what the drafter drafts, and no text changes for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.core import TreePolicy, Verdict
from specdec.drafters.eagle import Eagle
from specdec.drafters.eagle_head import EagleHead, most_frequent
from specdec.drafters.hybrid import Hybrid
from specdec.drafters.ngram import NGram
from specdec.sampling import SamplingParams, StepSampling
from specdec.step import Step, unheard
from specdec.target import Target
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..heads import make_head
from ..models import make_model, ragged_batch

VOCAB = 8  # few tokens, so that a random head is right now and then
K = 4
HEADS: dict[str, dict[str, Any]] = {
    "version 1": {"version": 1},
    "version 3": {},
    "fewer tokens": {"draft_tokens": [7, 2, 3, 5]},
    "normed at both ends": {"norm_output": True, "input_norm": "each"},
    "normed whole, one layer": {"input_norm": "whole", "hidden_layers": [1]},
}
TREES: dict[str, TreePolicy] = {
    "chain": chain(K),
    "static": StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]]),
    "best first": BestFirst(max_nodes=9, depth=4, top_k=3),
    "best first, much pruned": BestFirst(max_nodes=3, depth=5, top_k=2, width=4),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(vocab_size=VOCAB, dtype=torch.float64, num_hidden_layers=3)


def head_of(model: PreTrainedModel, **settings: Any) -> EagleHead:
    """Random, in float64, bound to no target."""
    made = make_head("eagle", Target(model), depth=K, **settings)
    assert isinstance(made, EagleHead)
    return made


def hidden_of(target: Target, text: list[int], more: int) -> dict[int, Tensor]:
    """The target's hidden states `[1, L + more, H]` of a text, and nonsense behind it."""
    target.open(1, len(text) + 1)
    known = target.prefill([0], [text]).hidden
    return {layer: torch.cat([x, torch.randn(1, more, x.shape[-1], dtype=x.dtype)], 1) for layer, x in known.items()}


def predicted(head: EagleHead, target: Target, text: list[int], root: int) -> list[int]:
    """The root and the argmax of `predict` behind it, which is told its own tokens."""
    tokens, hidden = [*text, root], hidden_of(target, text, K + 1)
    for depth in range(K):
        padded = torch.tensor([tokens + [0] * (K - depth)])  # [1, L]
        logits = head.predict(padded, hidden, torch.tensor([[len(text)]]))  # [1, 1, K, V]
        tokens.append(int(logits[0, 0, depth].argmax()))
    return tokens[len(text) :]


class Forced:
    """Accepts as many nodes of a chain as it is told, whatever they are. Keeps the texts, without their roots."""

    lossless: ClassVar[bool] = False
    shared_noise: ClassVar[bool] = True

    def __init__(self, capacity: int):
        self.texts: dict[int, list[int]] = {}
        self.below = torch.zeros(capacity, dtype=torch.int64)  # [B], nodes to accept below the root

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        nodes = torch.arange(tree.max_nodes).expand(tree.batch_size, -1)
        path = torch.where((nodes <= self.below[:, None]) & (tree.sizes > 0)[:, None], nodes, -1)
        count = (path >= 0).sum(-1, dtype=torch.int32)
        for slot, text in self.texts.items():
            text += tree.tokens[slot, : int(count[slot])].tolist()
        return Verdict(path, count, torch.randint(VOCAB, (tree.batch_size,)))


class Driven:
    """A drafter of chains and a target under `Forced`; every proposal is compared with `predict`."""

    def __init__(self, model: PreTrainedModel, head: EagleHead, capacity: int, length: int = K):
        self.oracle = Target(model, hidden_layers=head.hidden_layers)
        target = Target(model, hidden_layers=head.hidden_layers)
        self.length, self.rule = length, Forced(capacity)
        self.drafter = Eagle(head, chain(length)).attach(target)
        self.step = Step(target, self.drafter, self.rule, capacity, 120)

    def enter(self, slots: list[int], lengths: Sequence[int]) -> None:
        prompts = [torch.randint(VOCAB, (length,)).tolist() for length in lengths]
        target = self.step.target
        self.drafter.start(self.step.state, slots, prompts, target.prefill(slots, prompts))
        self.step.roots[slots] = torch.randint(VOCAB, (len(slots),))
        for slot, prompt in zip(slots, prompts, strict=True):
            self.step.sampler.start(slot, SamplingParams(), prompt)
            self.rule.texts[slot] = prompt

    def leave(self, slot: int) -> None:
        self.step.target.release(slot)
        self.step.roots[slot] = -1
        self.step.sampler.stop(slot)
        del self.rule.texts[slot]

    def move(self, below: Tensor, tree: TokenTree | None = None, levels: int | None = None) -> None:
        """A step that accepts `below` nodes of the proposal, or of another tree instead of it."""
        slots = sorted(self.rule.texts)
        noise = self.step.sampling(slots).draft_noise(True)
        proposed = self.drafter.propose(self.step.state, self.step.roots, noise, levels)
        nodes = 1 + (self.length if levels is None else levels)
        for slot in slots:
            wanted = predicted(self.drafter.head, self.oracle, self.rule.texts[slot], int(self.step.roots[slot]))
            assert proposed.tokens[slot].tolist() == wanted[:nodes]
        tree = tree or proposed
        self.rule.below = below
        verdict, output, _ = self.step.decide(tree, slots, unheard)
        self.drafter.observe(self.step.state, tree, verdict, output)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("lengths", [(7,), (1, 3, 9, 2, 6)], ids=["one", "ragged"])
@torch.inference_mode()
def test_it_drafts_what_it_predicts(model: PreTrainedModel, name: str, lengths: Sequence[int]) -> None:
    """While any number of nodes is accepted, a slot is empty, and others come and go."""
    torch.manual_seed(0)
    capacity = len(lengths) + 1
    driven = Driven(model, head_of(model, **HEADS[name]), capacity)
    driven.enter(list(range(1, capacity)), lengths)
    for number in range(6):
        if number == 3 and capacity > 2:
            driven.leave(2)
        if number == 4 and capacity > 2:
            driven.enter([2], [4])
        driven.move((number + torch.arange(capacity)) % (K + 1))


@torch.inference_mode()
def test_prompts_are_read_in_pieces(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("specdec.packing.PREFILL_ROWS", 6)  # two tokens of each of the three prompts at a time
    driven = Driven(model, head_of(model), 4)
    driven.enter([3, 0, 1], [8, 1, 5])
    driven.move(torch.tensor([1, 0, 2, 3]))
    driven.move(torch.tensor([0, 0, 0, 0]))


@pytest.mark.parametrize("accepted", [2, 3, 7, 8])
@torch.inference_mode()
def test_another_tree_is_accepted_further_down(model: PreTrainedModel, accepted: int) -> None:
    """As a part of `hybrid` it may see longer paths than its own; only what it cannot keep is run at once."""
    torch.manual_seed(0)
    driven = Driven(model, head_of(model), 2, length=2)
    driven.enter([0, 1], [5, 1])
    for _ in range(3):
        longer = torch.cat([driven.step.roots[:, None], torch.randint(VOCAB, (2, 8))], 1)
        driven.move(torch.tensor([accepted, 1]), TokenTree.chain(longer))
    driven.move(torch.tensor([2, 0]))


@torch.inference_mode()
def test_fewer_levels(model: PreTrainedModel) -> None:
    """As `adaptive` asks: what was not run while nothing was drafted is run in time."""
    torch.manual_seed(0)
    driven = Driven(model, head_of(model), 3, length=2)
    driven.enter([0, 2], [5, 1])
    for number, levels in enumerate([2, 0, 0, 1, 0, 0, 0, 0, 0, 2, 1]):
        if number == 5:
            driven.enter([1], [3])
        driven.move((number + torch.arange(3)) % (levels + 1), levels=levels)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_anchors_do_not_see_each_other_or_what_comes_after(model: PreTrainedModel, name: str) -> None:
    torch.manual_seed(0)
    head, length = head_of(model, **HEADS[name]), 14
    tokens = torch.randint(VOCAB, (2, length))
    hidden = {layer: torch.randn(2, length, 32, dtype=torch.float64) for layer in head.hidden_layers}
    anchors = torch.stack([torch.randperm(length - K - 1)[:3] + 1 for _ in range(2)])  # [2, 3]
    together = head.predict(tokens, hidden, anchors)
    assert together.shape == (2, 3, K, VOCAB)
    for row in range(2):
        for i, root in enumerate(anchors[row].tolist()):
            for depth in range(K):
                changed = tokens[row : row + 1].clone()
                changed[:, root + depth + 1 :] = torch.randint(VOCAB, changed[:, root + depth + 1 :].shape)
                known = {layer: x[row : row + 1].clone() for layer, x in hidden.items()}
                for x in known.values():
                    x[:, root:] = 1e3
                alone = head.predict(changed, known, torch.tensor([[root]]))[0, 0, depth]
                difference = torch.where(alone == together[row, i, depth], 0, alone - together[row, i, depth])
                assert difference.norm() < 1e-4 * alone[alone.isfinite()].norm()  # norms round to float32


@pytest.mark.parametrize("name", HEADS)
def test_every_weight_learns(model: PreTrainedModel, name: str) -> None:
    torch.manual_seed(0)
    head = head_of(model, **HEADS[name])
    hidden = {layer: torch.randn(2, 12, 32, dtype=torch.float64) for layer in head.hidden_layers}
    logits = head.predict(torch.randint(VOCAB, (2, 12)), hidden, torch.tensor([[1, 4], [6, 7]]))
    logits[logits.isfinite()].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())


@pytest.fixture(scope="module")
def plain_outputs() -> dict[Any, Any]:
    """Of plain decoding, by sampling and lengths of prompts, for all trees and heads."""
    return {}


@pytest.mark.parametrize("lengths", [(6,), (1, 3, 9, 2, 6)], ids=["one", "ragged"])
@pytest.mark.parametrize(
    ("name", "shape"), [*(("version 3", shape) for shape in TREES), ("version 1", "static"), ("fewer tokens", "chain")]
)
def test_text_is_the_targets_own(
    model: PreTrainedModel, plain_outputs: dict[Any, Any], name: str, shape: str, lengths: tuple[int, ...]
) -> None:
    head = head_of(model, **HEADS[name])
    ids, mask, _ = ragged_batch(lengths, vocab=VOCAB)
    settings: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": [], "pad_token_id": 0}
    accepted = []
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9, seed=5)):
        if (sampling, lengths) not in plain_outputs:  # of the one model of these tests
            plain_outputs[sampling, lengths] = specdec.generate(
                model, ids, mask, drafter="none", sampling=sampling, **settings
            )
        plain = plain_outputs[sampling, lengths]
        ours = specdec.generate(model, ids, mask, drafter=Eagle(head, TREES[shape]), sampling=sampling, **settings)
        assert torch.equal(ours.sequences, plain.sequences)
        accepted += [length for lengths in ours.stats.accept_lengths for length in lengths]
    assert max(accepted) > 1


def test_part_of_a_hybrid(model: PreTrainedModel) -> None:
    ids, mask, _ = ragged_batch((5, 9, 2), vocab=VOCAB)
    settings: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": [], "pad_token_id": 0}
    drafter = Hybrid([NGram(length=12), Eagle(head_of(model), chain(2))])
    plain = specdec.generate(model, ids, mask, drafter="none", **settings)
    ours = specdec.generate(model, ids, mask, drafter=drafter, **settings)
    assert torch.equal(ours.sequences, plain.sequences)
    assert max(map(max, ours.stats.accept_lengths)) > 4


def test_it_drafts_only_the_tokens_it_knows(model: PreTrainedModel) -> None:
    driven = Driven(model, head_of(model, draft_tokens=[7, 2, 3, 5]), 1)
    driven.enter([0], [6])
    with torch.inference_mode():
        assert set(driven.step.propose([0]).tokens[0, 1:].tolist()) <= {7, 2, 3, 5}
    with pytest.raises(ValueError, match="drafts 5 children a node; 4 tokens can be drafted"):
        Eagle(driven.drafter.head, BestFirst(top_k=5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_head_in_another_dtype(dtype: torch.dtype) -> None:
    model = make_model(vocab_size=VOCAB, dtype=dtype)
    head = head_of(make_model(vocab_size=VOCAB, dtype=torch.float64))
    ids, mask, _ = ragged_batch((5, 3), vocab=VOCAB)
    before = {name: x.clone() for name, x in head.state_dict().items()}
    out = specdec.generate(model, ids, mask, drafter=Eagle(head), max_new_tokens=12, eos_token_id=[])
    assert out.sequences.shape == (2, 5 + 12)
    assert all(torch.equal(x, before[name]) and x.dtype == before[name].dtype for name, x in head.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_size": 64}, "made for hidden states of 32, the target has 64"),
        ({"vocab_size": 80}, "vocabulary of 8 tokens, the target of 80"),
        ({"num_hidden_layers": 5}, "made for a target of 3 layers, this one has 5"),
        ({"num_hidden_layers": 2}, "hidden layer 2 asked of"),
    ],
)
def test_another_target_is_refused(model: PreTrainedModel, settings: dict[str, Any], told: str) -> None:
    other = make_model(**{"vocab_size": VOCAB, "num_hidden_layers": 3} | settings)
    with pytest.raises(ValueError, match=told):
        specdec.generate(other, torch.ones(1, 3, dtype=torch.int64), drafter=Eagle(head_of(model)), max_new_tokens=4)


def test_new_heads(model: PreTrainedModel) -> None:
    target = Target(model)
    head = EagleHead.new(target, draft_tokens=most_frequent(torch.tensor([3, 0, 9, 1, 9, 0, 3, 2]), 3))
    lm_head = model.get_output_embeddings().weight
    assert head.d2t is not None
    assert (head.d2t + torch.arange(3)).tolist() == [0, 2, 4]
    assert head.lm_head is not None
    assert torch.equal(head.lm_head.weight, lm_head[[0, 2, 4]].float())
    assert head.hidden_layers == (0, 1, 2)
    assert EagleHead.new(Target(make_model(num_hidden_layers=16))).hidden_layers == (1, 7, 12)
    assert EagleHead.new(Target(make_model(num_hidden_layers=1))).hidden_layers == (0,)
    with pytest.raises(ValueError, match="version 2 with draft_tokens=None was asked for"):
        EagleHead.new(target, version=2)
    with pytest.raises(ValueError, match="9 tokens to draft were asked for; expected 1 to 8"):
        most_frequent(torch.zeros(8), 9)
