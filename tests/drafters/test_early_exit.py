"""Drafts of some of the target's layers against transformers' own forward passes, and the KV that is shared."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

import specdec
from specdec import inspection
from specdec.acceptance.coupled import Coupled
from specdec.core import Drafter, TreePolicy
from specdec.decode import decode
from specdec.drafters.early_exit import EarlyExit
from specdec.drafters.hybrid import Hybrid
from specdec.drafters.none import NoDrafter
from specdec.metrics import DecodingStats
from specdec.partial import with_layers
from specdec.request import Request
from specdec.sampling import Sampler, SamplingParams
from specdec.step import Step
from specdec.target import Target, attach
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain

from ..fakes import Harness, check_shape, climb
from ..models import ARCHITECTURES, make_model, plain_text, ragged_batch

LAYERS = 4
PROMPTS = [[5, 6, 7, 5, 6], [11], [2, 3, 2, 3, 2, 3, 2], [9, 8], [4] * 12]
POLICIES: dict[str, TreePolicy] = {
    "chain": chain(3),
    "chain of one": chain(1),
    "static": StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [1, 0, 0]]),
    "best first, much pruned": BestFirst(max_nodes=3, depth=5, top_k=2, width=12),
    "more than a word": BestFirst(max_nodes=5, depth=4, top_k=5, width=25),
}
LEFT_OUT: dict[str, dict[str, Any]] = {
    "first": {"exit_layer": 1},
    "first three": {"exit_layer": 3},
    "without the midst": {"skip": [1, 2]},
    "without the first": {"skip": [0]},
    "every second": {"skip": [3, 1]},
}


def deep_model(architecture: str = "llama", **settings: Any) -> PreTrainedModel:
    """Of four layers, where they differ by turns."""
    settings = {"dtype": torch.float64, **settings}
    settings["n_layer" if architecture == "gpt2" else "num_hidden_layers"] = LAYERS
    if architecture in ("gemma2", "gemma3", "gpt_oss", "cohere2"):
        settings["layer_types"] = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    return make_model(architecture, **settings)


def skipped(settings: dict[str, Any]) -> list[int]:
    return settings.get("skip") or list(range(settings["exit_layer"], LAYERS))


class Reference:
    """The draft's logits by the model's own forward: the whole model reads the text, then layers hand on what they got.

    Transformers' cache is in the tree's place: one pass for every path.
    """

    def __init__(self, model: PreTrainedModel, skip: list[int]):
        self.model, self.skip = copy.deepcopy(model), skip
        self.model.set_attn_implementation("eager")

    @torch.inference_mode()
    def __call__(self, text: list[int], path: list[int]) -> Tensor:
        """`[V]`; `text` ends before the root, with which `path` begins."""
        cache = DynamicCache(config=self.model.config)
        self.model(torch.tensor([text]), past_key_values=cache, use_cache=True)
        blocks = inspection.layer_list(self.model)[1]
        hooks = [blocks[i].register_forward_hook(self._hand_on, with_kwargs=True) for i in self.skip]
        logits = self.model(torch.tensor([path]), past_key_values=cache, use_cache=True).logits[0, -1]
        for hook in hooks:
            hook.remove()
        return logits

    @staticmethod
    def _hand_on(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> Any:
        hidden = given[0] if given else named["hidden_states"]
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


@torch.inference_mode()
def check_drafts(model: PreTrainedModel, settings: dict[str, Any], policy: TreePolicy, steps: int = 3) -> None:
    """Greedy drafts: the children of every node are the reference's best after its path, in every slot."""
    harness = Harness(EarlyExit(**settings, tree=policy).attach(Target(model)), 4, 40, SamplingParams(), False)
    reference, width = Reference(model, skipped(settings)), policy.branching(0)
    harness.enter([0, 2], [PROMPTS[0], PROMPTS[1]])
    for number in range(steps):
        if number == 1:
            harness.enter([3], [PROMPTS[2]])
        if number == 2:
            harness.leave(0)
            harness.enter([0], [PROMPTS[4]])
        before = {slot: list(text) for slot, text in harness.texts.items()}
        tree = harness.step()
        check_shape(tree)
        for slot, text in before.items():
            tokens = tree.tokens[slot, : int(tree.sizes[slot])].tolist()
            parents = tree.parents[slot, : len(tokens)].tolist()
            for j in range(len(tokens)):
                children = [tokens[i] for i in range(len(tokens)) if parents[i] == j]
                if children:
                    logits = reference(text, [tokens[i] for i in reversed(climb(parents, j))])
                    assert children == logits.topk(width).indices.tolist()[: len(children)]


@pytest.mark.parametrize("shape", POLICIES)
def test_trees_are_those_of_plain_forwards(shape: str) -> None:
    check_drafts(deep_model(vocab_size=40), LEFT_OUT["without the midst"], POLICIES[shape])


@pytest.mark.parametrize("settings", LEFT_OUT.values(), ids=LEFT_OUT)
def test_whichever_layers_are_left_out(settings: dict[str, Any]) -> None:
    check_drafts(deep_model(vocab_size=40), settings, POLICIES["static"])


QUICK = ("gemma3", "gpt2", "opt")  # layers by turns; other names for everything
SLOWLY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]


@pytest.mark.parametrize("architecture", SLOWLY)
def test_every_architecture(architecture: str) -> None:
    """Windows and kinds of layers stay those of the layers that are kept."""
    model = deep_model(architecture, vocab_size=40, dtype=torch.float32)  # some have no float64
    for settings in (LEFT_OUT["first three"], LEFT_OUT["without the first"]):
        check_drafts(model, settings, chain(3), steps=2)


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.9, top_p=0.9, seed=7)], ids=str)
@pytest.mark.parametrize("shape", ["chain", "best first, much pruned"])
def test_the_text_is_that_of_plain_decoding(slots: int, sampling: SamplingParams, shape: str) -> None:
    """Coupled, same seed: token for token, in any batch and up to the last position."""
    target = Target(deep_model(max_position_embeddings=48))
    drafter = EarlyExit(skip=[2], tree=POLICIES[shape]).attach(target)
    assert to_the_end(target, drafter, slots, sampling) == plain_to_the_end(slots, sampling)


def to_the_end(target: Target, drafter: Drafter, slots: int, sampling: SamplingParams) -> dict[int, list[int]]:
    lengths = [20, 15, 41, 1, 12]
    requests = [Request(p, n, sampling) for p, n in zip(PROMPTS, lengths, strict=True)]
    step = Step(target, drafter, Coupled(), slots, 48)
    return {g.index: g.new_ids for g, _ in decode(step, requests) if g.finished}


@cache
def plain_to_the_end(slots: int, sampling: SamplingParams) -> dict[int, list[int]]:
    return to_the_end(Target(deep_model(max_position_embeddings=48)), NoDrafter(), slots, sampling)


@pytest.mark.parametrize("within", [False, True], ids=["alone", "in a hybrid"])
def test_room_up_to_the_last_place(within: bool) -> None:
    """Growing a tree runs many more nodes than are proposed, and writes them behind the text."""
    target = Target(deep_model())
    grower: Any = EarlyExit(exit_layer=3, tree=BestFirst(max_nodes=2, depth=6, top_k=5, width=25))
    drafter: Any = attach(Hybrid([grower], max_nodes=2) if within else grower, target)
    assert drafter.needs.max_nodes == 2
    assert drafter.needs.room > 80
    requests, texts = [Request(PROMPTS[4], 20), Request(PROMPTS[1], 31)], []
    for each in (NoDrafter(), drafter):
        step = Step(target, each, Coupled(), 2, 32)
        texts.append({g.index: g.new_ids for g, _ in decode(step, requests) if g.finished})
    assert texts[0] == texts[1]


def test_layers_that_do_nothing_are_not_missed() -> None:
    """Drafts are right to the end where what is left out adds nothing, with noise and penalties too."""
    model = deep_model()
    with torch.no_grad():
        for i in (1, 2):
            layer = model.model.layers[i]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    ids, mask, _ = ragged_batch((5, 9))
    for sampling in (SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.2, seed=1)):
        out = specdec.generate(
            model, ids, mask, drafter=EarlyExit(skip=[1, 2]), max_new_tokens=31, sampling=sampling, eos_token_id=[]
        )
        assert out.stats.accept_lengths == [[5] * 6] * 2


@pytest.mark.parametrize("acceptance", ["coupled", "rejection", "block", "traversal"])
def test_with_every_lossless_rule(acceptance: str) -> None:
    model = deep_model()
    ids, mask, prompts = ragged_batch((9, 4, 1))
    out = specdec.generate(
        model, ids, mask, drafter=EarlyExit(exit_layer=3), acceptance=acceptance, max_new_tokens=30, eos_token_id=[]
    )
    assert out.sequences[:, ids.shape[1] :].tolist() == [plain_text(model, p, 30) for p in prompts]


@torch.inference_mode()
def test_fewer_levels_where_they_are_asked_for() -> None:
    """The whole tree's first levels, whatever was asked for before."""
    target = Target(deep_model())
    drafter = EarlyExit(exit_layer=3, tree=POLICIES["static"]).attach(target)
    target.open(2, 20, drafter.needs.room)
    state = drafter.open(2, 20, target.device)
    target.prefill([1], [PROMPTS[0]])
    noise = Sampler(2, 80, target.device).at(target.lengths, 9, [1]).draft_noise(True)
    roots = torch.tensor([-1, 7])
    whole = drafter.propose(state, roots, noise).paths(1)
    for levels in (0, 2, 1, 3, None, 9):
        wanted = {tuple(path[: 1 + (3 if levels is None else levels)]) for path in whole}
        assert {tuple(path) for path in drafter.propose(state, roots, noise, levels=levels).paths(1)} >= wanted
        most = max(map(len, drafter.propose(state, roots, noise, levels=levels).paths(1)))
        assert most == 1 + min(3, 3 if levels is None else levels)


def test_the_cache_is_the_targets_own() -> None:
    """No KV is allocated, and the target's lengths are only moved by commits."""
    target = Target(deep_model())
    drafter = EarlyExit(exit_layer=2).attach(target)
    step = Step(target, drafter, Coupled(), 2, 40)
    assert step.state.cache.arenas is target.cache.arenas
    stats = DecodingStats()
    for generation, _ in decode(step, [Request(PROMPTS[0], 15)], stats):
        if not generation.finished:
            assert target.lengths.tolist() == [len(generation.ids) - 1, 0]


def test_a_shorter_model_shares_its_modules_and_leaves_the_whole_as_it_was() -> None:
    for architecture in ("llama", "gemma3", "opt"):
        model = deep_model(architecture)
        ids = torch.tensor([PROMPTS[0]])
        with torch.inference_mode():
            before, config = model(ids, use_cache=False).logits, model.config.to_dict()
            made = with_layers(model, [0, 3])
            assert len(inspection.layer_list(made)[1]) == made.config.num_hidden_layers == 2
            assert {id(p) for p in made.parameters()} < {id(p) for p in model.parameters()}
            assert not torch.equal(made(ids, use_cache=False).logits, before)
            assert torch.equal(model(ids, use_cache=False).logits, before)
        assert model.config.to_dict() == config
        assert inspection.layer_list(model)[1][3] is inspection.layer_list(made)[1][1]


def test_refuses() -> None:
    neither_or_both: list[dict[str, Any]] = [{}, {"exit_layer": 2, "skip": [1]}]
    for settings in neither_or_both:
        with pytest.raises(ValueError, match="needs exit_layer or skip, and one of them"):
            EarlyExit(**settings)
    for settings in ({"exit_layer": 0}, {"skip": []}, {"skip": [1, 1]}, {"skip": [-1]}):
        with pytest.raises(ValueError, match=r"early_exit\.(exit_layer|skip) is .*; expected"):
            EarlyExit(**settings)
    target = Target(deep_model())
    for settings in ({"exit_layer": 4}, {"exit_layer": 9}, {"skip": [4]}, {"skip": [0, 1, 2, 3]}):
        with pytest.raises(ValueError, match=f"got {next(iter(settings))}=.* for a target of 4 layers; expected some"):
            EarlyExit(**settings).attach(target)
    with pytest.raises(ValueError, match="attach it to a target"):
        EarlyExit(exit_layer=1).open(1, 10, torch.device("cpu"))
    with pytest.raises(ValueError, match="drafts 90 children a node; 80 tokens can be drafted"):
        EarlyExit(exit_layer=1, tree=StaticTree([[i] for i in range(90)])).attach(target)


def test_refuses_a_model_whose_layers_are_not_in_a_list() -> None:
    target = Target(deep_model())
    blocks = target.model.model.layers
    target.model.model.layers = nn.Sequential(*blocks)
    with pytest.raises(ValueError, match="not known how to leave layers out of a LlamaForCausalLM"):
        EarlyExit(exit_layer=1).attach(target)
