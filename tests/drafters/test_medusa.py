"""Medusa and Hydra: what their heads are trained to predict is what they draft, and no text changes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec import SamplingParams, heads
from specdec.core import TreePolicy, Verdict
from specdec.drafters.hydra import Hydra
from specdec.drafters.hydra_head import HydraHead
from specdec.drafters.medusa import Medusa
from specdec.drafters.medusa_head import Config, MedusaHead
from specdec.engine import Engine
from specdec.heads import bound
from specdec.sampling import StepSampling
from specdec.step import Step, unheard
from specdec.target import Target, attach
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..fakes import climb
from ..heads import make_head
from ..models import VOCAB, make_model, ragged_batch

K = 3
KINDS: dict[str, tuple[type[Medusa], dict[str, Any]]] = {
    "medusa": (Medusa, {}),
    "medusa, two layers, shared LM head": (Medusa, {"layers": 2, "own_lm_heads": False}),
    "hydra": (Hydra, {}),
    "hydra, two layers, shared LM head": (Hydra, {"layers": 2, "own_lm_heads": False}),
}
TREES: dict[str, TreePolicy] = {
    "chain": chain(K),
    "short chain": chain(2),
    "static": StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]]),
    "best first": BestFirst(max_nodes=9, depth=K, top_k=3),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(dtype=torch.float64)


def make_drafter(kind: str, model: PreTrainedModel, tree: TreePolicy | None = None) -> Medusa:
    drafter, settings = KINDS[kind]
    return drafter(make_head(drafter.__name__.lower(), Target(model), heads=K, **settings), tree)


class Forced:
    """Walks down a random path of random length, and goes on with a random token: keeps the texts up to the root."""

    lossless: ClassVar[bool] = False
    shared_noise: ClassVar[bool] = True

    def __init__(self, texts: dict[int, list[int]]):
        self.texts = texts
        self.generator = torch.Generator().manual_seed(1)

    def random(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self.generator))

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        path = torch.full((tree.batch_size, tree.max_nodes), -1)
        for slot, text in self.texts.items():
            size = int(tree.sizes[slot])
            nodes = climb(tree.parents[slot, :size].tolist(), self.random(size))[::-1]
            path[slot, : len(nodes)] = torch.tensor(nodes)
            text += tree.tokens[slot, nodes].tolist()
        following = torch.tensor([self.random(VOCAB) for _ in range(tree.batch_size)])
        return Verdict(path, (path >= 0).sum(-1, dtype=torch.int32), following)


class Loop:
    """Steps of a real target with a made-up rule, the slots of which requests enter and leave."""

    def __init__(self, drafter: Medusa, model: PreTrainedModel, capacity: int):
        self.texts: dict[int, list[int]] = {}
        target = Target(model, hidden_layers=drafter.needs.hidden_layers)
        self.step = Step(target, attach(drafter, target), Forced(self.texts), capacity, 100)

    @torch.inference_mode()
    def enter(self, slots: list[int], prompts: list[list[int]]) -> None:
        step = self.step
        for slot, prompt in zip(slots, prompts, strict=True):
            step.target.release(slot)
            self.texts[slot] = list(prompt)
            step.sampler.start(slot, SamplingParams(), self.texts[slot])
            step.roots[slot] = 2 + slot
        step.drafter.start(step.state, slots, prompts, step.target.prefill(slots, prompts))

    def leave(self, slot: int) -> None:
        self.step.roots[slot] = -1
        self.step.sampler.stop(slot)
        del self.texts[slot]

    @torch.inference_mode()
    def run(self) -> dict[int, tuple[list[int], TokenTree]]:
        """A step; what every slot's text was before it, and the trees. Fewer levels change nothing that comes after."""
        before = {slot: list(text) for slot, text in self.texts.items()}
        slots = sorted(self.texts)
        tree = self.step.propose(slots)
        for levels in (0, 1, 2):
            noise, drafter = self.step.sampling(slots).draft_noise(True), self.step.drafter
            first = drafter.propose(self.step.state, self.step.roots, noise, levels=levels)  # type: ignore[call-arg]
            assert int(first.depths.max()) == levels
            if not isinstance(drafter.policy, BestFirst):  # type: ignore[attr-defined]
                assert torch.equal(first.tokens, tree.tokens[:, : first.max_nodes])
        verdict, output, _ = self.step.decide(tree, slots, unheard)
        self.step.drafter.observe(self.step.state, tree, verdict, output)
        return {slot: (text, tree) for slot, text in before.items()}


@torch.inference_mode()
def predicted(head: MedusaHead, model: PreTrainedModel, text: list[int], drafted: list[int]) -> Tensor:
    """`[K, V]` of a root at the end of `text`, followed by `drafted` `[K]`, from a plain forward of the model."""
    ids = torch.tensor([[*text, *drafted]])
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    return head.predict(ids, {-1: hidden}, torch.tensor([[len(text) - 1]]))[0, 0]


PROMPTS = [[5, 6, 7, 5, 6], [1], [2, 3, 2, 3, 2, 3, 2], [9, 8], [4] * 12]


@pytest.mark.parametrize("capacity", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_chains_are_what_predict_says(kind: str, capacity: int, model: PreTrainedModel) -> None:
    """Through partly accepted drafts, slots that end, stay empty and are taken again."""
    drafter = make_drafter(kind, model)
    loop = Loop(drafter, model, capacity)
    loop.enter(list(range(capacity))[::-1], PROMPTS[:capacity])
    head = bound(drafter.head, loop.step.target)
    for number in range(7):
        if number == 3:
            loop.leave(0)
        if number == 5 or not loop.texts:
            loop.enter([0], [[7, 7, 3]])
        for slot, (text, tree) in loop.run().items():
            root, *drafted = tree.tokens[slot].tolist()
            assert drafted == predicted(head, model, [*text, root], drafted).argmax(-1).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["static", "best first"])
def test_children_are_the_likeliest(shape: str, kind: str, model: PreTrainedModel) -> None:
    """Of every node of a tree: what `predict` says of its own path, best first."""
    drafter = make_drafter(kind, model, TREES[shape])
    loop = Loop(drafter, model, 2)
    loop.enter([0, 1], PROMPTS[:2])
    head = bound(drafter.head, loop.step.target)
    for _ in range(3):
        for slot, (text, tree) in loop.run().items():
            tokens, parents = tree.tokens[slot].tolist(), tree.parents[slot].tolist()
            for node in set(parents) - {-1}:
                path = [tokens[j] for j in reversed(climb(parents, node))]
                level, filled = len(path) - 1, (path + [0] * K)[: K + 1]
                logits = predicted(head, model, [*text, filled[0]], filled[1:])[level]
                children = [tokens[j] for j, parent in enumerate(parents) if parent == node]
                assert children == logits.topk(len(children)).indices.tolist()


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_only_hydra_looks_at_what_was_drafted(kind: str, model: PreTrainedModel) -> None:
    head = make_drafter(kind, model).head
    head = bound(head, Target(model))
    first, second = (predicted(head, model, [5, 6, 7], drafted) for drafted in ([1, 2, 3], [9, 2, 3]))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1:], second[1:]) == (kind == "medusa")


def test_predict_looks_no_further(model: PreTrainedModel) -> None:
    """Neither at hidden states from the root on, nor at tokens that it predicts."""
    head = make_drafter("hydra", model).head
    bound_head = bound(head, Target(model))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (2, 9), generator=generator)
    hidden = torch.randn(2, 9, head.hidden_size, generator=generator, dtype=torch.float64)
    anchors = torch.tensor([[1, 4], [5, 2]])
    logits = bound_head.predict(tokens, {-1: hidden}, anchors)
    assert logits.shape == (2, 2, K, VOCAB)
    for row in range(2):
        for place in range(2):
            r = int(anchors[row, place])
            for k in range(K):
                other, states = tokens.clone(), hidden.clone()
                other[row, r + k + 1 :] = (other[row, r + k + 1 :] + 1) % VOCAB
                states[row, r:] += 1
                again = bound_head.predict(other, {-1: states}, anchors)
                assert torch.equal(again[row, place, k], logits[row, place, k])


SAMPLED = SamplingParams(temperature=0.9, top_k=12, repetition_penalty=1.2, seed=3)


@pytest.mark.parametrize("lengths", [(5,), (5, 1, 9, 3, 7)], ids=["one", "five"])
@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("kind", ["medusa", "hydra, two layers, shared LM head"])
def test_no_text_changes(
    kind: str, shape: str, sampling: SamplingParams, lengths: tuple[int, ...], model: PreTrainedModel
) -> None:
    ids, mask, _ = ragged_batch(lengths)
    settings: dict[str, Any] = {"max_new_tokens": 17, "sampling": sampling, "eos_token_id": [3], "pad_token_id": 0}
    plain = specdec.generate(model, ids, mask, drafter="none", **settings)
    ours = specdec.generate(model, ids, mask, drafter=make_drafter(kind, model, TREES[shape]), **settings)
    assert torch.equal(ours.sequences, plain.sequences)


@pytest.mark.parametrize("rule", ["rejection", "traversal"])
@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_drawn_drafts_carry_their_distribution(kind: str, rule: str, model: PreTrainedModel) -> None:
    """Under rules that draw, greedy requests still get the greedy text; sampled ones run."""
    ids, mask, _ = ragged_batch((5, 9, 3))
    drafter = make_drafter(kind, model, TREES["static"])
    settings: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": [], "pad_token_id": 0}
    plain = specdec.generate(model, ids, mask, drafter="none", **settings)
    ours = specdec.generate(model, ids, mask, drafter=drafter, acceptance=rule, **settings)
    assert torch.equal(ours.sequences, plain.sequences)
    sampled = specdec.generate(model, ids, mask, drafter=drafter, acceptance=rule, sampling=SAMPLED, **settings)
    assert sampled.sequences.shape == plain.sequences.shape


def test_new_heads_give_the_targets_own_logits(model: PreTrainedModel) -> None:
    target = Target(model)
    for kind in (MedusaHead, HydraHead):
        for own in (True, False):
            head = kind.new(target, heads=2, own_lm_heads=own)
            tokens = torch.tensor([[5, 6, 7, 8, 9]])
            made = model(input_ids=tokens, output_hidden_states=True)
            logits = head.predict(tokens, {-1: made.hidden_states[-1].float()}, torch.tensor([[2]]))[0, 0]
            assert torch.allclose(logits, made.logits[0, 1].float().expand(2, -1), atol=1e-5)
            assert sum(p.numel() for p in head.lm_heads.parameters()) == own * 2 * VOCAB * head.hidden_size


# --- files


def proposals(drafter: Medusa, model: PreTrainedModel) -> list[Tensor]:
    loop = Loop(drafter, model, 2)
    loop.enter([0, 1], PROMPTS[:2])
    return [loop.run()[0][1].tokens for _ in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: str, model: PreTrainedModel, tmp_path: Path) -> None:
    drafter = make_drafter(kind, model)
    drafter.head.save(tmp_path)
    again = type(drafter)(tmp_path)
    assert again.head.config == drafter.head.config
    for got, wanted in zip(proposals(again, model), proposals(drafter, model), strict=True):
        assert torch.equal(got, wanted)
    stored = load_file(tmp_path / heads.WEIGHTS)
    assert sum(x.numel() for x in stored.values()) == sum(p.numel() for p in drafter.head.parameters())


@pytest.mark.parametrize("kind", ["medusa", "medusa, two layers, shared LM head"])
@pytest.mark.parametrize("format", sorted(MedusaHead.formats))
def test_foreign_formats_round_trip(format: str, kind: str, model: PreTrainedModel, tmp_path: Path) -> None:
    """The same proposals, bit for bit."""
    drafter = make_drafter(kind, model)
    drafter.head.formats[format](bound(drafter.head, Target(model)), model).save(tmp_path)
    again = Medusa(tmp_path)
    assert again.head.depth == K
    for got, wanted in zip(proposals(again, model), proposals(drafter, model), strict=True):
        assert torch.equal(got, wanted)


def write_medusa(folder: Path, count: int = 2, **settings: Any) -> None:
    """By the format's description, not by our writer."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for head in range(count):
        tensors[f"{head}.0.linear.weight"] = torch.randn(8, 8, generator=generator)
        tensors[f"{head}.0.linear.bias"] = torch.randn(8, generator=generator)
        tensors[f"{head}.1.weight"] = torch.randn(30, 8, generator=generator)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "medusa_lm_head.safetensors")
    config = {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "x/y", **settings}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_medusa_folders(tmp_path: Path) -> None:
    write_medusa(tmp_path)
    head = MedusaHead.load(tmp_path)
    assert head.config == Config(hidden_size=8, vocab_size=30, heads=2)
    stored = load_file(tmp_path / "medusa_lm_head.safetensors")
    hidden = torch.randn(1, 8)
    block = hidden + torch.nn.functional.silu(hidden @ stored["1.0.linear.weight"].T + stored["1.0.linear.bias"])
    wanted = block @ stored["1.1.weight"].T
    assert torch.allclose(head.guess(hidden, torch.tensor([[[3, 4]]]))[0], wanted, atol=1e-5)


def test_vllm_folders_without_bias(model: PreTrainedModel, tmp_path: Path) -> None:
    export = MedusaHead.formats["vllm"](bound(make_drafter("medusa", model).head, Target(model)), model)
    tensors = {key: x for key, x in export.tensors.items() if not key.endswith("bias")}
    heads.Export({**export.config, "medusa_fc_bias": False}, tensors).save(tmp_path)
    loaded = MedusaHead.load(tmp_path).state_dict()
    assert not loaded["blocks.0.layers.0.bias"].any()
    assert torch.equal(loaded["blocks.0.layers.0.weight"], export.tensors["blocks.0.layers.0.weight"])


# --- bad input


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"medusa_num_heads": 5}, "says medusa_num_heads=5; its weights hold 2 heads"),
        ({"medusa_num_layers": 2}, "no LM head for the first head"),
        ({"medusa_num_layers": None}, "medusa_num_layers=None; expected a whole number"),
        ({"medusa_num_heads": None}, "holds no Medusa head"),
    ],
)
def test_medusa_folders_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    write_medusa(tmp_path, **settings)
    with pytest.raises(ValueError, match=told):
        Medusa(tmp_path)


def test_damaged_folders(tmp_path: Path) -> None:
    write_medusa(tmp_path)
    file = tmp_path / "medusa_lm_head.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="damaged or cut off"):
        Medusa(tmp_path)
    file.write_bytes(whole)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Medusa(tmp_path)
    file.unlink()
    write_medusa(tmp_path)
    torch.save(load_file(file), tmp_path / "medusa_lm_head.pt")
    file.unlink()
    with pytest.raises(ValueError, match=r"loads no pickles.*medusa_lm_head\.safetensors"):
        Medusa(tmp_path)


def test_heads_of_another_drafter(model: PreTrainedModel, tmp_path: Path) -> None:
    make_drafter("hydra", model).head.save(tmp_path)
    with pytest.raises(ValueError, match="a head for drafter=hydra; expected one for drafter=medusa"):
        Medusa(tmp_path)
    with pytest.raises(ValueError, match="is no HydraHead"):
        Hydra(make_drafter("medusa", model).head)


@pytest.mark.parametrize("tree", [chain(K + 1), BestFirst(max_nodes=8, depth=K + 1, top_k=2)])
def test_too_few_heads(tree: TreePolicy, model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=f"the tree is {K + 1} tokens deep, but there are {K} heads"):
        make_drafter("medusa", model, tree)


def test_too_many_children(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=f"drafts {VOCAB + 1} children a node; {VOCAB} tokens can be drafted"):
        make_drafter("medusa", model, StaticTree([[rank] for rank in range(VOCAB + 1)]))


@pytest.mark.parametrize(
    ("settings", "told"), [({"hidden_size": 64}, "hidden states of"), ({"vocab_size": 2 * VOCAB}, "a vocabulary of")]
)
def test_another_target(settings: dict[str, Any], told: str, model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=told):
        Engine(make_model(**settings), make_drafter("medusa", model), None, "coupled")


def test_configs_without_heads() -> None:
    with pytest.raises(ValueError, match="a head's heads is 0"):
        Config(8, 30, heads=0)
