"""Settings of a head's decoder layers, which are transformers' own of some architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specdec.inspection import rope_limit
from specdec.registry import unknown
from specdec.target import Target

SETTINGS = (  # of any such layer
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"),
    *("rms_norm_eps", "max_position_embeddings", "rope_parameters", "attention_bias"),
)
ROPE = ("rope_theta", "rope_scaling")  # as config.json had them before transformers 5


def shape_of(target: Target, intermediate_size: int | None) -> dict[str, Any]:
    """Sizes of a target's layers, for a head's. `intermediate_size` is None for three times the hidden size."""
    model = target.model.config.get_text_config()
    heads, width = model.num_attention_heads, model.hidden_size
    return {
        "hidden_size": width,
        "intermediate_size": 3 * width if intermediate_size is None else intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(model, "num_key_value_heads", None) or heads,
        "head_dim": getattr(model, "head_dim", None) or width // heads,
    }


def layer_settings(
    cls: type[PreTrainedConfig], known: Sequence[str], given: Mapping[str, Any], name: str | Path = "a new head"
) -> dict[str, Any]:
    """Those of `given` that are the layers', and transformers' defaults for what is not given.

    Args:
        cls: the configuration whose layers these are.
        known: names of settings.
        given: a config.json, for one; what is not known is left out.
        name: of the head, for messages.

    Raises:
        ValueError: a value cannot be one, or the layers could not be run here.
    """
    chosen = {key: given[key] for key in (*known, *ROPE) if given.get(key) is not None}
    try:
        config, usual = cls(**chosen), cls().to_dict()
        full = config.to_dict()
        for key in known:
            _check_value(key, full[key], usual[key])
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        if heads % groups:
            raise ValueError(f"num_key_value_heads is {groups}; expected a divisor of num_attention_heads, {heads}")
        kind, _ = rope_limit(config)
        if not kind:
            LlamaRotaryEmbedding(config)
    except (ValueError, TypeError, LookupError, StrictDataclassError) as error:
        raise ValueError(f"the layer settings of {name} are wrong: {' '.join(str(error).split())}") from error
    if kind:
        raise ValueError(f"{name} has {kind} rotary scaling, which depends on the longest text of a batch")
    return {key: full[key] for key in known}


def _check_value(key: str, value: Any, usual: Any) -> None:
    """Not every release of transformers looks at its settings."""
    kinds = (int, float) if type(usual) is float else (type(usual),)
    if type(value) not in kinds or (type(value) in (int, float) and value <= 0):
        raise ValueError(f"{key} is {value!r}; expected a value like {usual!r}")
    if key == "hidden_act" and value not in ACT2FN:
        raise unknown(key, value, ACT2FN)


def check_settings(cls: type[PreTrainedConfig], known: Sequence[str], decoder: object, name: str | Path) -> None:
    """Look over the `decoder` in the config.json of a head of ours.

    Raises:
        ValueError: a setting is unknown or missing, or its value cannot be one.
    """
    if not isinstance(decoder, Mapping):
        raise ValueError(
            f"`decoder` in the config.json of {name} is {decoder!r:.200}; expected the settings {', '.join(known)}"
        )
    for key in decoder:
        if key not in known:
            raise unknown(f"setting of `decoder` in the config.json of {name}", str(key), known)
    if lacking := [key for key in known if decoder.get(key) is None]:
        raise ValueError(f"`decoder` in the config.json of {name} lacks {', '.join(lacking)}; copy or export it again")
    layer_settings(cls, known, decoder, name)
