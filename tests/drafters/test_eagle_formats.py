"""EAGLE heads of others: what a folder says is read as it was meant, and what cannot be run is told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec import heads, loading
from specdec.drafters.eagle import Eagle
from specdec.drafters.eagle_head import EagleHead
from specdec.target import Target
from specdec.tree.best_first import BestFirst

from ..heads import make_head
from ..models import make_model, ragged_batch

VOCAB = 12
Tensors = dict[str, Tensor]
HEADS: dict[str, dict[str, Any]] = {
    "version 1": {"version": 1},
    "version 3": {},
    "fewer tokens, normed": {"draft_tokens": [1, 3, 4, 8, 9, 11], "norm_output": True, "input_norm": "each"},
    "normed whole": {"input_norm": "whole", "intermediate_size": 20},
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(vocab_size=VOCAB, num_hidden_layers=8, dtype=torch.float64)


def head_of(model: PreTrainedModel, **settings: Any) -> EagleHead:
    made = make_head("eagle", Target(model), **settings)
    assert isinstance(made, EagleHead)
    return made


def drafts(model: PreTrainedModel, head: EagleHead) -> tuple[list[list[int]], Tensor]:
    """Accepted lengths and the texts."""
    ids, mask, _ = ragged_batch((5, 2, 9), vocab=VOCAB)
    drafter = Eagle(head, BestFirst(max_nodes=8, depth=4, top_k=3))
    out = specdec.generate(model, ids, mask, drafter=drafter, max_new_tokens=24, eos_token_id=[], pad_token_id=0)
    return out.stats.accept_lengths, out.sequences


def files(folder: Path) -> tuple[dict[str, Any], Tensors]:
    return json.loads((folder / heads.CONFIG).read_text()), load_file(folder / heads.WEIGHTS)


def rewrite(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    heads.Export(config, tensors).save(folder)
    return folder


@pytest.fixture
def foreign(model: PreTrainedModel, tmp_path: Path) -> Path:
    """An EAGLE-3 folder with fewer tokens."""
    head = head_of(model, **HEADS["fewer tokens, normed"])
    head.formats["vllm"](head, model).save(tmp_path / "foreign")
    return tmp_path / "foreign"


@pytest.mark.parametrize("name", HEADS)
def test_there_and_back(model: PreTrainedModel, name: str, tmp_path: Path) -> None:
    """Ours and vLLM's folders give the same tensors, bit for bit, and so the same drafts."""
    head = head_of(model, **HEADS[name])
    head.save(tmp_path / "ours")
    head.formats["vllm"](head, model).save(tmp_path / "vllm")
    wanted = drafts(model, head)
    assert EagleHead.load(tmp_path / "ours").config == head.config
    for folder in ("ours", "vllm"):
        read = EagleHead.load(tmp_path / folder)
        assert read.state_dict().keys() == head.state_dict().keys()
        assert all(torch.equal(x, head.state_dict()[key]) for key, x in read.state_dict().items())
        got = drafts(model, read)
        assert got[0] == wanted[0]
        assert torch.equal(got[1], wanted[1])


def test_names_of_eagle_3(foreign: Path) -> None:
    config, tensors = files(foreign)
    layer = {"hidden_norm", "input_layernorm", "post_attention_layernorm"}
    layer |= {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    own = {"fc", "norm", "lm_head", "fc_norm.0", "fc_norm.1", "fc_norm.2"} | {f"midlayer.{x}" for x in layer}
    assert set(tensors) == {f"{x}.weight" for x in own} | {"d2t", "t2d"}
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert (config["vocab_size"], config["draft_vocab_size"], config["num_hidden_layers"]) == (VOCAB, 6, 1)
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (32, 64)
    assert tensors["fc.weight"].shape == (32, 96)
    assert (tensors["d2t"] + torch.arange(6)).tolist() == [1, 3, 4, 8, 9, 11]
    assert tensors["t2d"].nonzero()[:, 0].tolist() == [1, 3, 4, 8, 9, 11]


def test_a_head_that_drafts_all_tokens_has_no_numbers_of_them(model: PreTrainedModel, tmp_path: Path) -> None:
    """vLLM keeps no room for `d2t` then, and refuses the folder."""
    head = head_of(model)
    head.formats["vllm"](head, model).save(tmp_path)
    config, tensors = files(tmp_path)
    assert config["draft_vocab_size"] == VOCAB
    assert not {"d2t", "t2d"} & set(tensors)


def test_names_of_eagle_1(model: PreTrainedModel, tmp_path: Path) -> None:
    """With what published folders hold besides: the target's embedding and LM head, a bias."""
    head = head_of(model, version=1)
    head.formats["vllm"](head, model).save(tmp_path)
    config, tensors = files(tmp_path)
    assert {"fc.weight", "layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight"} < set(tensors)
    assert tensors["layers.0.self_attn.q_proj.weight"].shape == (32, 32)
    wanted = drafts(model, head)
    given = {"embed_tokens.weight": model.get_input_embeddings(), "lm_head.weight": model.get_output_embeddings()}
    tensors |= {key: module.weight.detach().clone() for key, module in given.items()}
    tensors |= {"fc.bias": torch.zeros(32), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    read = EagleHead.load(rewrite(tmp_path, config | {"bias": True}, tensors))
    assert read.config.fc_bias
    assert read.embed_tokens is not None
    assert not read.embed_tokens.weight.requires_grad
    assert drafts(model, read)[0] == wanted[0]


def test_speculators(model: PreTrainedModel, foreign: Path) -> None:
    """The layer's settings lie in a mapping of their own, its tensors under `layers.0`."""
    wanted = drafts(model, EagleHead.load(foreign))
    config, tensors = files(foreign)
    top = {key: config.pop(key) for key in ("draft_vocab_size", "eagle_aux_hidden_state_layer_ids", "norm_output")}
    top |= {"fc_norm": config.pop("fc_norm"), "speculators_model_type": "eagle3", "transformer_layer_config": config}
    tensors = {key.replace("midlayer.", "layers.0."): x for key, x in tensors.items()}
    tensors["verifier_norm.weight"] = torch.ones(32)
    got = drafts(model, EagleHead.load(rewrite(foreign, top, tensors)))
    assert got[0] == wanted[0]
    with pytest.raises(ValueError, match="holds a dflash speculator; expected an EAGLE head"):
        EagleHead.load(rewrite(foreign, top | {"speculators_model_type": "dflash"}, tensors))


def test_layers_that_are_not_told(model: PreTrainedModel, foreign: Path) -> None:
    config, tensors = files(foreign)
    inside = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": config.pop("eagle_aux_hidden_state_layer_ids")}}
    assert EagleHead.load(rewrite(foreign, config | inside, tensors)).config.hidden_layers == (1, 3, 4)
    rewrite(foreign, config, tensors)
    with pytest.raises(ValueError, match=r"give drafter\.target_layers"):
        EagleHead.load(foreign)
    assert Eagle(foreign, target_layers=8).needs.hidden_layers == (1, 3, 4)
    other, ids = make_model(vocab_size=VOCAB, num_hidden_layers=6), torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="made for a target of 8 layers, this one has 6"):
        specdec.generate(other, ids, drafter=Eagle(foreign, target_layers=8), max_new_tokens=4)


def test_scaled_rope_of_old_folders(foreign: Path) -> None:
    config, tensors = files(foreign)
    del config["rope_parameters"]
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config |= {"rope_theta": 5e5, "rope_scaling": scaling | {"original_max_position_embeddings": 64}}
    rope = EagleHead.load(rewrite(foreign, config, tensors)).decoder.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("llama3", 5e5, 8.0)


def without(key: str) -> Callable[[dict[str, Any], Tensors], object]:
    return lambda config, tensors: tensors.pop(key)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c, t: c.update(num_hidden_layers=2), "has 2 decoder layers; specdec runs EAGLE heads of one"),
        (lambda c, t: c.update(sliding_window=128), "has a sliding window"),
        (
            lambda c, t: c.update(rope_scaling={"type": "dynamic", "factor": 2.0}, rope_parameters=None),
            "has dynamic rotary",
        ),
        (lambda c, t: c.update(eagle_aux_hidden_state_layer_ids=[0, 2, 3]), "reads the target's embedding"),
        (
            lambda c, t: c.update(eagle_aux_hidden_state_layer_ids=[2, 3]),
            r"fc\.weight of .* has shape \[32, 96\]; its config\.json says \[32, 64\]",
        ),
        (lambda c, t: c.update(fc_norm=False), r"hold fc_norm\.0\.weight"),
        (lambda c, t: c.pop("hidden_size"), "holds no EAGLE head"),
        (lambda c, t: c.pop("vocab_size"), "holds no EAGLE head"),
        (lambda c, t: c.update(draft_vocab_size=5), "drafts 5 of 12 tokens, but has 6 entries in d2t"),
        (lambda c, t: c.update(draft_vocab_size=12), "drafts all 12 tokens, but its d2t renumbers them"),
        (without("d2t"), "drafts 6 of 12 tokens, but has no d2t"),
        (lambda c, t: t["d2t"].fill_(7), "d2t of .* does not name 6 different tokens"),
        (lambda c, t: t["t2d"].fill_(True), "d2t of .* does not name 6 different tokens"),
        (without("midlayer.self_attn.k_proj.weight"), r"lack midlayer\.self_attn\.k_proj\.weight"),
        (without("fc.weight"), "holds no EAGLE head"),
        (lambda c, t: t.update({"midlayer.self_attn.q_norm.weight": torch.ones(8)}), "hold .*q_norm"),
    ],
)
def test_what_is_refused(foreign: Path, change: Callable[[dict[str, Any], Tensors], object], told: str) -> None:
    config, tensors = files(foreign)
    change(config, tensors)
    with pytest.raises(ValueError, match=told) as refused:
        EagleHead.load(rewrite(foreign, config, tensors))
    assert "\n" not in str(refused.value)


def test_pickles_are_refused(foreign: Path) -> None:
    tensors = load_file(foreign / heads.WEIGHTS)
    (foreign / heads.WEIGHTS).unlink()
    torch.save(tensors, foreign / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"loads no pickles\. If you trust pytorch_model\.bin, convert it there"):
        EagleHead.load(foreign)


def test_a_head_is_no_model(foreign: Path) -> None:
    with pytest.raises(ValueError, match="holds a head, not a model; give it to its drafter: drafter=eagle"):
        loading.load_model(foreign)


def test_the_last_layers_output_is_not_exported(model: PreTrainedModel) -> None:
    head = head_of(model, hidden_layers=[1, -1])
    with pytest.raises(ValueError, match="reads hidden layer -1, which EAGLE-3 heads elsewhere cannot"):
        head.formats["vllm"](head, model)
