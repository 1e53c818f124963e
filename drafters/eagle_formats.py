"""What an EAGLE head is made of, and the folders in which others keep such heads.

Known are the folders of EAGLE-1, 2 and 3 (SafeAILab/EAGLE, SpecForge, vLLM) and those of speculators. Tensors have
EAGLE-3's names here: `midlayer.*` for the decoder layer, `fc`, `norm`, `lm_head`, `d2t`.

Two conventions are translated. Others count a layer's *input*: id 2 is what goes into layer 2, our layer 1's output.
And `d2t[i]` is not draft token i's number in the target's vocabulary but how much larger that is than i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from specdec.drafters.layer_settings import SETTINGS, layer_settings

ID_SHIFT = 1  # from our layers' outputs to others' ids
DECODER = (*SETTINGS, "mlp_bias")  # of the decoder layer
IGNORED = ("t2d", "verifier_norm.", "verifier_lm_head.")  # tensors of no use here


@dataclass(frozen=True, slots=True)
class EagleConfig:
    """What a head is made of.

    Attributes:
        version: 1 (EAGLE-2's heads are the same) or 3.
        vocab_size: of the target.
        hidden_size: of the target's hidden states.
        hidden_layers: of the target, whose outputs it reads; version 1 reads -1, what the LM head reads.
        decoder: settings of transformers' LlamaConfig, whose layer this is.
        draft_vocab_size: tokens it can draft; all, or fewer with version 3.
        depth: tokens that `predict` predicts ahead of a root, K. Drafts may be deeper.
        target_layers: decoder layers of the target; None where nobody said.
        fc_bias: `fc` has a bias.
        norm_before_residual: what is added to the attention's output is the normed feature, not the feature.
        norm_output: the final norm's output is what feeds the next step (EAGLE-3.1), not its input.
        input_norm: of the target's hidden states before `fc`: none, whole (all layers' in one), each (EAGLE-3.1).
        own_embedding: it has an embedding of its own, not the target's.
    """

    version: int
    vocab_size: int
    hidden_size: int
    hidden_layers: tuple[int, ...]
    decoder: dict[str, Any]
    draft_vocab_size: int
    depth: int = 5
    target_layers: int | None = None
    fc_bias: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False
    input_norm: str = "none"
    own_embedding: bool = False


def default_layers(count: int) -> tuple[int, ...]:
    """EAGLE-3's choice of a low, a middle and a high layer for a target of `count`, as outputs."""
    if count < 7:  # two of them would be the same
        return 0, (count - 1) // 2, count - 1
    return 2 - ID_SHIFT, count // 2 - ID_SHIFT, count - 3 - ID_SHIFT


def read_foreign(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str | Path, target_layers: int | None
) -> tuple[EagleConfig, dict[str, Tensor]]:
    """A head that another project saved.

    Args:
        settings: its config.json.
        tensors: under that project's names.
        name: for messages.
        target_layers: decoder layers of its target, for config.jsons that leave out which ones the head reads.

    Raises:
        ValueError: it is no EAGLE head, or of a kind that cannot be run here; the message says which.
    """
    kind = settings.get("speculators_model_type")
    if kind not in (None, "eagle3"):
        raise ValueError(f"{name} holds a {kind} speculator; expected an EAGLE head (speculators_model_type eagle3)")
    layer = settings.get("transformer_layer_config", {}) if kind else settings
    named = {_rename(key): x for key, x in tensors.items() if not _ignored(key)}
    if "fc.weight" not in named or not {"hidden_size", "vocab_size"} <= layer.keys():
        wanted = "fc.weight, and hidden_size and vocab_size in its config.json"
        raise ValueError(f"{name} holds no EAGLE head: expected {wanted}")
    _check_layer(layer, name)
    biased = {"attention_bias": "midlayer.self_attn.q_proj.bias" in named}
    decoder = layer_settings(LlamaConfig, DECODER, {**layer, **biased}, name)
    version = 3 if "midlayer.hidden_norm.weight" in named else 1
    width: int = settings.get("target_hidden_size") or layer["hidden_size"]
    vocab_size: int = layer["vocab_size"]
    own = "embed_tokens.weight" in named
    if version == 1:
        named.pop("lm_head.weight", None)  # a copy of the target's
        bias = "fc.bias" in named
        return EagleConfig(1, vocab_size, width, (-1,), decoder, vocab_size, fc_bias=bias, own_embedding=own), named
    if "t2d" in tensors:
        vocab_size = len(tensors["t2d"])
    draft_vocab_size: int = settings.get("draft_vocab_size") or vocab_size
    _check_mapping(named, tensors.get("t2d"), draft_vocab_size, vocab_size, name)
    config = EagleConfig(
        3,
        vocab_size,
        width,
        _layers(settings, target_layers, name),
        decoder,
        draft_vocab_size,
        target_layers=target_layers,
        norm_before_residual=bool(settings.get("norm_before_residual")),
        norm_output=bool(settings.get("norm_output")),
        input_norm="each" if settings.get("fc_norm") else "whole" if settings.get("norm_before_fc") else "none",
        own_embedding=own,
    )
    return config, named


def write_foreign(config: EagleConfig, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a head as vLLM and EAGLE's own code read them.

    Args:
        config: of the head.
        tensors: its `state_dict`.

    Raises:
        ValueError: it reads what the target's LM head reads, which EAGLE-3 heads elsewhere cannot.
    """
    settings: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **config.decoder,
        "rope_theta": config.decoder["rope_parameters"]["rope_theta"],
        "num_hidden_layers": 1,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": str(tensors["fc.weight"].dtype).removeprefix("torch."),
    }
    if config.version == 1:
        renamed = {key.replace("midlayer.", "layers.0."): x for key, x in tensors.items()}
        return settings | {"bias": config.fc_bias}, renamed
    if -1 in config.hidden_layers:
        raise ValueError("this head reads hidden layer -1, which EAGLE-3 heads elsewhere cannot; train it on others")
    settings |= {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.hidden_size,
        "eagle_aux_hidden_state_layer_ids": [layer + ID_SHIFT for layer in config.hidden_layers],
        "norm_before_residual": config.norm_before_residual,
        "norm_output": config.norm_output,
        "fc_norm": config.input_norm == "each",
        "norm_before_fc": config.input_norm == "whole",
    }
    if "d2t" not in tensors:  # all tokens are drafted: vLLM wants no numbers then
        return settings, dict(tensors)
    offsets = tensors["d2t"].cpu()
    known = torch.zeros(config.vocab_size, dtype=torch.bool)
    known[offsets + torch.arange(len(offsets))] = True
    return settings, dict(tensors) | {"d2t": offsets, "t2d": known}


def _rename(key: str) -> str:
    key = key.removeprefix("model.")
    return "midlayer." + key.removeprefix("layers.0.") if key.startswith("layers.0.") else key


def _ignored(key: str) -> bool:
    return key.endswith("rotary_emb.inv_freq") or _rename(key).startswith(IGNORED)


def _check_layer(layer: Mapping[str, Any], name: str | Path) -> None:
    """Refuse what the layer's settings already show to be impossible."""
    count = layer.get("num_hidden_layers", 1)
    if count != 1:
        raise ValueError(f"the head {name} has {count} decoder layers; specdec runs EAGLE heads of one")
    if layer.get("sliding_window") and layer.get("use_sliding_window", True):
        raise ValueError(f"the head {name} has a sliding window, which specdec does not run in EAGLE heads")


def _layers(settings: Mapping[str, Any], target_layers: int | None, name: str | Path) -> tuple[int, ...]:
    """Those it reads, as outputs."""
    inside = settings.get("eagle_config") or {}
    ids = settings.get("eagle_aux_hidden_state_layer_ids") or inside.get("eagle_aux_hidden_state_layer_ids")
    if ids:
        if min(ids) < ID_SHIFT:
            raise ValueError(f"the head {name} reads the target's embedding (layer id {min(ids)} of {list(ids)})")
        return tuple(int(i) - ID_SHIFT for i in ids)
    if target_layers is None:
        raise ValueError(
            f"the config.json of {name} does not say which layers the head reads (eagle_aux_hidden_state_layer_ids); "
            "give drafter.target_layers, the target's number of decoder layers, for EAGLE-3's usual choice"
        )
    return default_layers(target_layers)


def _check_mapping(
    named: dict[str, Tensor], known: Tensor | None, draft_vocab_size: int, vocab_size: int, name: str | Path
) -> None:
    """Look over `d2t` and `t2d`; a mapping of all tokens to themselves is taken out."""
    offsets = named.get("d2t")
    if draft_vocab_size == vocab_size:
        if offsets is not None and offsets.any():
            raise ValueError(f"the head {name} drafts all {vocab_size} tokens, but its d2t renumbers them")
        named.pop("d2t", None)
        return
    if offsets is None or len(offsets) != draft_vocab_size:
        got = "no d2t" if offsets is None else f"{len(offsets)} entries in d2t"
        raise ValueError(f"the head {name} drafts {draft_vocab_size} of {vocab_size} tokens, but has {got}")
    ids = offsets.long() + torch.arange(draft_vocab_size)
    wrong = int(ids.min()) < 0 or int(ids.max()) >= vocab_size or len(ids.unique()) < draft_vocab_size
    if wrong or (known is not None and not (known[ids].all() and int(known.sum()) == draft_vocab_size)):
        raise ValueError(
            f"d2t of {name} does not name {draft_vocab_size} different tokens of {vocab_size}, as t2d says"
        )
    named["d2t"] = offsets.long()
