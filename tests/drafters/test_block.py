"""The block head: what it is trained to predict is what it drafts, and no text changes for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec import SamplingParams, heads, inspection, loading
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
    "as DFlash": {"causal": False, "from_root": False, "rank": 0, "lead": False, "mask_token": 9},
    "causal, two layers, rows of their own": {"from_root": False, "layers": 2, "hidden_layers": (0, -1)},
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(dtype=torch.float64, num_hidden_layers=3)


@pytest.fixture(scope="module")
def write(model: PreTrainedModel) -> Callable[..., Tensor]:
    """Texts of a drafter; plain decoding's are written once for all trees."""
    plain: dict[Any, Tensor] = {}

    def write(drafter: object, lengths: tuple[int, ...], temperature: float) -> Tensor:
        if drafter == "none" and (lengths, temperature) in plain:
            return plain[lengths, temperature]
        ids, mask, _ = ragged_batch(lengths)
        sampling = SamplingParams(temperature=temperature, seed=5)
        made = specdec.generate(model, ids, mask, drafter=drafter, sampling=sampling, max_new_tokens=20).sequences
        if drafter == "none":
            plain[lengths, temperature] = made
        return made

    return write


class Forced:
    """Accepts as many nodes of a chain as it is told, whatever they are; keeps the texts."""

    lossless: ClassVar[bool] = False
    shared_noise: ClassVar[bool] = True

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
    for number in range(7):
        if number == 3 and len(lengths) > 1:
            target.release(2)
            step.roots[2] = -1
            step.sampler.stop(2)
            del rule.texts[2]
        if number == 5 and len(lengths) > 1:
            enter([2], [4])
        slots = sorted(rule.texts)
        tree = step.propose(slots)
        for slot in slots:
            assert tree.tokens[slot].tolist() == predicted(head, target, rule.texts[slot], int(step.roots[slot]))
        for levels in (0, 2):
            shorter = drafter.propose(step.state, step.roots, step.sampling(slots).draft_noise(True), levels)
            assert torch.equal(shorter.tokens, tree.tokens[:, : levels + 1])
        rule.keep[:] = (number + torch.arange(len(rule.keep))) % (K + 1)
        seen |= {int(rule.keep[slot]) for slot in slots}
        verdict, output, _ = step.decide(tree, slots, unheard)
        drafter.observe(step.state, tree, verdict, output)
    assert seen == set(range(K + 1))


def hidden_states(model: PreTrainedModel, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """What `layers` put out in a plain forward of `tokens` `[B, L]`."""
    taken: dict[int, Tensor] = {}
    modules = inspection.hidden_modules(model, layers).items()
    hooks = [module.register_forward_hook(inspection.tap(taken, layer)) for layer, module in modules]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return {layer: states.clone() for layer, states in taken.items()}


def predicted(head: BlockHead, target: Target, text: list[int], root: int) -> list[int]:
    """The root, and what `predict` says one token after the other; what comes later must not matter."""
    model, chain = target.model, [root]
    head = bound(head, target)
    for k in range(K):
        tokens = torch.tensor([text + chain + [k + 2] * (K - k)])
        hidden = hidden_states(model, tokens, head.hidden_layers)
        for states in hidden.values():
            states[:, len(text) :] = 9 * torch.randn_like(states[:, len(text) :])
        chain.append(int(head.predict(tokens, hidden, torch.tensor([[len(text)]]))[0, 0, k].argmax()))
    return chain


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampled"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("lengths", [(6,), (6, 1, 12, 3, 8)], ids=["one", "ragged"])
def test_the_text_is_the_targets(
    model: PreTrainedModel,
    write: Callable[..., Tensor],
    tree: str,
    lengths: tuple[int, ...],
    temperature: float,
) -> None:
    """With any tree; a batch with every kind of head."""
    expected = write("none", lengths, temperature)
    for settings in list(HEADS.values())[: None if len(lengths) > 1 else 1]:
        drafter = Block(make_head("block", Target(model), depth=K, **settings), TREES[tree])
        assert torch.equal(write(drafter, lengths, temperature), expected)


def test_what_is_saved_comes_back(model: PreTrainedModel, tmp_path: Path) -> None:
    head = make_head("block", Target(model), depth=K)
    head.save(tmp_path)
    loaded = BlockHead.load(tmp_path)
    assert loaded.config == head.config
    assert loaded.state_dict().keys() == head.state_dict().keys()
    assert all(torch.equal(x, head.state_dict()[name]) for name, x in loaded.state_dict().items())
    assert not {"embedding", "lm_head"} & loaded.state_dict().keys()  # the target's


def test_a_tree_deeper_than_the_block(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=f"6 levels deep, the head predicts {K} tokens"):
        Block(make_head("block", Target(model), depth=K), chain(6))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_size": 48}, "made for hidden states of 32, the target has 48"),
        ({"vocab_size": 120}, "vocabulary of 80 tokens, the target of 120"),
        ({"vocab_size": 82}, "vocabulary of 80 tokens, the target has 82"),
        ({"num_hidden_layers": 1}, "hidden layer [12] asked of LlamaForCausalLM; expected -1 or 0 to 0"),
    ],
    ids=["width", "vocabulary", "vocabulary, almost", "layers"],
)
def test_another_target(model: PreTrainedModel, settings: dict[str, Any], told: str) -> None:
    drafter = Block(make_head("block", Target(model), depth=K), chain(2))
    with pytest.raises(ValueError, match=told):
        specdec.generate(
            make_model(**{"num_hidden_layers": 3} | settings), torch.tensor([[3, 4]]), drafter=drafter, max_new_tokens=2
        )


# --- heads that others saved

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
}
DFLASH = DECODER | {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "rope_theta": 5000.0,
    "block_size": K + 1,
    "num_target_layers": 3,
    "layer_types": ["full_attention"] * 2,
    "dflash_config": {"mask_token_id": 7, "target_layer_ids": [0, 2]},
}
SPECULATORS = {
    "speculators_model_type": "dflash",
    "transformer_layer_config": DECODER
    | {"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "draft_vocab_size": VOCAB,
    "block_size": K + 1,
    "aux_hidden_state_layer_ids": [1, 2],
    "mask_token_id": 7,
}


def dflash_tensors() -> dict[str, Tensor]:
    """Under DFlash's names."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"fc": (32, 64), "hidden_norm": (32,), "norm": (32,)}
    for i in range(2):
        own: dict[str, tuple[int, ...]] = {"input_layernorm": (32,), "post_attention_layernorm": (32,)}
        own |= {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32)}
        own |= {"self_attn.o_proj": (32, 32), "self_attn.q_norm": (8,), "self_attn.k_norm": (8,)}
        own |= {"mlp.gate_proj": (40, 32), "mlp.up_proj": (40, 32), "mlp.down_proj": (32, 40)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in own.items()}
    return {
        f"{name}.weight": 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64) + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of `[R, heads, 8]`."""
    angles = positions[:, None] / 5000.0 ** (torch.arange(4) / 4)  # [R, 4]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x[..., :4], x[..., 4:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def naive_dflash(
    w: dict[str, Tensor], embedding: Tensor, lm_head: Tensor, features: Tensor, root: int, causal: bool
) -> Tensor:
    """Logits `[K, V]` of a block after a text whose hidden states are `features` `[r, layers * H]`; in plain torch."""
    known = norm(features @ w["fc.weight"].T, w["hidden_norm.weight"])  # [r, H]
    x = embedding[[root] + [7] * K]  # [K + 1, H]
    r, positions = len(known), torch.arange(len(known) + K + 1)
    for i in range(2):
        own = {name.removeprefix(f"layers.{i}."): y for name, y in w.items()}
        normed = norm(x, own["input_layernorm.weight"])
        rows = torch.cat([known, normed])  # [r + K + 1, H]
        q = norm((normed @ own["self_attn.q_proj.weight"].T).view(-1, 4, 8), own["self_attn.q_norm.weight"])
        k = norm((rows @ own["self_attn.k_proj.weight"].T).view(-1, 2, 8), own["self_attn.k_norm.weight"])
        v = (rows @ own["self_attn.v_proj.weight"].T).view(-1, 2, 8)
        q, k = turn(q, positions[r:]), turn(k, positions).repeat_interleave(2, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
        if causal:
            scores = scores.masked_fill(positions > positions[r:, None], float("-inf"))
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.repeat_interleave(2, 1))
        x = x + mixed.flatten(1) @ own["self_attn.o_proj.weight"].T
        normed = norm(x, own["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(normed @ own["mlp.gate_proj.weight"].T)
        x = x + (gate * (normed @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"])[1:] @ lm_head.T


def edited(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return config | {key: config.get(key, {}) | x if isinstance(x, dict) else x for key, x in changes.items()}


@pytest.mark.parametrize(
    ("config", "layers", "causal"),
    [
        (DFLASH, (0, -1), False),
        (edited(DFLASH, dflash_config={"causal_head": True, "block_size": K + 1}, block_size=None), (0, -1), True),
        (SPECULATORS, (0, 1), False),
    ],
    ids=["DFlash", "JetSpec", "speculators"],
)
def test_heads_of_others(
    model: PreTrainedModel, tmp_path: Path, config: dict[str, Any], layers: tuple[int, ...], causal: bool
) -> None:
    tensors = dflash_tensors()
    extra = {"embed_tokens.weight": torch.zeros(2, 2), "verifier_norm.weight": torch.zeros(2)}
    heads.Export(config, tensors | (extra if config is SPECULATORS else {})).save(tmp_path)
    drafter = Block(str(tmp_path), chain(K)).attach(Target(model))
    assert loading.head_kind(tmp_path) == "block"
    assert drafter.needs.hidden_layers == layers
    embedding, lm_head = drafter.head.embedding, drafter.head.lm_head
    assert embedding is not None
    assert lm_head is not None
    text = torch.randint(2, VOCAB, (2, 9 + K), generator=torch.Generator().manual_seed(2))
    hidden = {layer: torch.randn(2, 9 + K, 32, dtype=torch.float64) for layer in layers}
    anchors = torch.tensor([[1, 8, 5], [3, 2, 8]])
    found = drafter.head.predict(text, hidden, anchors)
    for b, row in enumerate(anchors.tolist()):
        for a, r in enumerate(row):
            features = torch.cat([hidden[layer][b, :r] for layer in layers], -1)
            expected = naive_dflash(tensors, embedding, lm_head, features, int(text[b, r]), causal)
            assert torch.allclose(found[b, a], expected, atol=1e-4)
    ids = torch.tensor([[3, 4, 5]])
    written = [specdec.generate(model, ids, drafter=d, max_new_tokens=12).sequences for d in ("none", drafter)]
    assert torch.equal(*written)


def test_heads_for_others(model: PreTrainedModel, tmp_path: Path) -> None:
    """What is exported comes back the same; a head with parts of our own is not exported."""
    target = Target(model)
    for causal in (True, False):
        head = make_head("block", target, depth=K, **HEADS["as DFlash"] | {"causal": causal, "hidden_layers": (0, -1)})
        head.formats["dflash"](head, model).save(tmp_path)
        back = BlockHead.load(tmp_path)
        assert back.config == head.config
        assert all(torch.equal(x, back.state_dict()[name]) for name, x in head.state_dict().items())
    with pytest.raises(ValueError, match="has from_root=True, lead=True, rank=64, mask_token=None, hidden_layers="):
        head.formats["dflash"](make_head("block", target), model)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (edited(DFLASH, dflash_config={"selector_rank": 4}), "has selector_rank in its dflash_config"),
        (edited(DFLASH, dflash_config={"mask_token_id": None}), r"lacks dflash_config\.mask_token_id"),
        (edited(DFLASH, layer_types=["full_attention", "sliding_attention"]), "sliding-window layers"),
        (edited(DFLASH, rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "dynamic rotary scaling"),
        (edited(SPECULATORS, projector_type="domino"), "projector_type 'domino'"),
        (edited(SPECULATORS, draft_vocab_size=30), "drafts 30 of 80 tokens"),
        (edited(SPECULATORS, aux_hidden_state_layer_ids=[0, 2]), r"aux_hidden_state_layer_ids \[0, 2\]"),
        ({"model_type": "llama"}, "holds no block head"),
    ],
)
def test_heads_that_cannot_be_run(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    heads.Export(config, dflash_tensors()).save(tmp_path)
    with pytest.raises(ValueError, match=told):
        BlockHead.load(tmp_path)
