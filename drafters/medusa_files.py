"""Medusa heads as others keep them: as FasterDecoding/Medusa saves them, and as vLLM reads them.

Ours are named as vLLM's: `blocks.HEAD.layers.LAYER.{weight,bias}` and `lm_heads.HEAD.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from specdec.heads import Export

if TYPE_CHECKING:
    from specdec.drafters.medusa_head import MedusaHead

Tensors = dict[str, Tensor]


def read_foreign(settings: Mapping[str, Any], tensors: Tensors, name: str | Path) -> tuple[dict[str, Any], Tensors]:
    """A folder's config.json and tensors as ours.

    Raises:
        ValueError: the config.json is none of Medusa's or vLLM's, or speaks of more heads than there are.
    """
    if "medusa_num_heads" in settings:
        layers = _number(settings, "medusa_num_layers", name)
        tensors = {_from_medusa(key, layers): x for key, x in tensors.items()}
        # its heads are those in the file: the published config.json of five heads says two
        saved = {int(key.split(".")[1]) for key in tensors if re.fullmatch(r"blocks\.\d+\..*", key)}
        heads, least, own = len(saved), _number(settings, "medusa_num_heads", name), True
        if heads < least:
            raise ValueError(f"the config.json of {name} says medusa_num_heads={least}; its weights hold {heads} heads")
    elif settings.get("model_type") == "medusa":
        heads, layers = (_number(settings, key, name) for key in ("num_heads", "num_hidden_layers"))
        own = not settings.get("original_lm_head", False)
        if not settings.get("medusa_fc_bias", False):
            weights = {key: x for key, x in tensors.items() if re.fullmatch(r"blocks\.\d+\.layers\.\d+\.weight", key)}
            tensors = tensors | {key.replace("weight", "bias"): x.new_zeros(len(x)) for key, x in weights.items()}
    else:
        raise ValueError(
            f"{name} holds no Medusa head: its config.json has neither specdec_head, nor medusa_num_heads, nor "
            "model_type medusa"
        )
    lm_head = tensors.get("lm_heads.0.weight")
    if lm_head is None or lm_head.ndim != 2:
        raise ValueError(f"the weights of {name} hold no LM head for the first head; copy or download it again")
    if not own:
        tensors = {key: x for key, x in tensors.items() if not key.startswith("lm_head")}
    vocab_size, hidden_size = lm_head.shape
    sizes = {"hidden_size": hidden_size, "vocab_size": vocab_size}
    return sizes | {"heads": heads, "layers": layers, "own_lm_heads": own}, tensors


def _number(settings: Mapping[str, Any], key: str, name: str | Path) -> int:
    if type(value := settings.get(key)) is not int:
        raise ValueError(f"the config.json of {name} has {key}={value!r}; expected a whole number")
    return value


def _from_medusa(key: str, layers: int) -> str:
    """`{head}.{layer}.linear.{weight,bias}` and `{head}.{layers}.weight` as ours."""
    if found := re.fullmatch(r"(\d+)\.(\d+)\.linear\.(weight|bias)", key):
        return f"blocks.{found[1]}.layers.{found[2]}.{found[3]}"
    found = re.fullmatch(rf"(\d+)\.{layers}\.weight", key)
    return f"lm_heads.{found[1]}.weight" if found else key


def to_medusa(head: MedusaHead, model: PreTrainedModel) -> Export:
    """As FasterDecoding/Medusa saves them: every head has an LM head, be it a copy of the target's."""
    layers, tensors = head.config.layers, {}
    for key, x in _with_lm_heads(head).items():
        parts = key.split(".")
        place = f"{parts[1]}.{parts[3]}.linear.{parts[4]}" if parts[0] == "blocks" else f"{parts[1]}.{layers}.weight"
        tensors[place] = x
    numbers = {"medusa_num_heads": head.depth, "medusa_num_layers": layers}
    return Export(numbers | {"base_model_name_or_path": model.name_or_path}, tensors, "medusa_lm_head.safetensors")


def to_vllm(head: MedusaHead, model: PreTrainedModel) -> Export:
    """As vLLM's `method: medusa` reads them, heads that share the target's LM head with a single copy of it."""
    own, tensors = head.config.own_lm_heads, _with_lm_heads(head)
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": head.hidden_size,
        "vocab_size": head.vocab_size,
        "truncated_vocab_size": head.vocab_size,
        "num_heads": head.depth,
        "num_hidden_layers": head.config.layers,
        "medusa_fc_bias": True,
        "original_lm_head": not own,
        "dtype": str(next(head.parameters()).dtype).removeprefix("torch."),
    }
    shared = {key: x for key, x in tensors.items() if own or not re.match(r"lm_heads\.[1-9]", key)}
    return Export(config, shared)


def _with_lm_heads(head: MedusaHead) -> Tensors:
    tensors: Tensors = dict(head.state_dict())
    if not head.config.own_lm_heads:
        assert head.lm_head is not None, "bind the head to its target first"
        tensors |= {f"lm_heads.{k}.weight": head.lm_head.clone() for k in range(head.depth)}
    return tensors


FORMATS = {"medusa": to_medusa, "vllm": to_vllm}
