"""What a block head is made of, and the folders in which others keep such heads.

Known are DFlash's (z-lab/dflash; JetSpec's are the same with `causal_head`) and those that speculators writes of them.
Tensors have DFlash's names here: `fc`, `hidden_norm`, `layers.*`, `norm`. DFlash counts layers as we do; speculators
counts what goes into a layer: its id 2 is our layer 1's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Qwen3Config

from specdec.drafters.layer_settings import SETTINGS, layer_settings

DECODER = ("num_hidden_layers", *SETTINGS)  # of the layers
DFLASH = {"block_size", "causal_head", "mask_token_id", "target_layer_ids"}  # all of dflash_config that we know
IGNORED = ("t2d", "d2t", "embed_tokens.", "lm_head.", "verifier_norm.", "verifier_lm_head.")  # the target's own


@dataclass(frozen=True)
class BlockConfig:
    """What a head is made of.

    Attributes:
        vocab_size: of the target.
        depth: tokens predicted ahead of a root, K.
        hidden_layers: of the target, whose outputs are fused.
        decoder: settings of transformers' Qwen3Config, whose layers these are.
        causal: a block row sees those before it; False: all. A causal head also drafts shorter blocks, for less.
        from_root: the root's row predicts the token after the root; False: it predicts nothing, and the placeholders'
            rows predict the tokens at their own places.
        lead: the text's row right before the root is added to the block's rows.
        rank: of the correction by the token before; 0 for none.
        mask_token: the placeholders are this token's embedding; None: each has its own, which is learned.
    """

    vocab_size: int
    depth: int
    hidden_layers: tuple[int, ...]
    decoder: dict[str, Any]
    causal: bool = True
    from_root: bool = True
    lead: bool = True
    rank: int = 64
    mask_token: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("depth", self.depth, 1), ("rank", self.rank, 0)):
            if type(value) is not int or value < least:
                raise ValueError(f"a block head's {name} is {value!r}; expected a whole number of at least {least}")
        if not self.hidden_layers:
            raise ValueError(
                "a block head's hidden_layers are empty; expected layers of the target, as in [3, 7, 11, -1]"
            )

    @property
    def rows(self) -> int:
        """Of a block, the root's included."""
        return self.depth if self.from_root else self.depth + 1


def read_foreign(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str | Path
) -> tuple[BlockConfig, dict[str, Tensor]]:
    """A head that another project saved.

    Args:
        settings: its config.json.
        tensors: under that project's names.
        name: for messages.

    Raises:
        ValueError: it is no block head, or of a kind that cannot be run here; the message says which.
    """
    kept = {key: x for key, x in tensors.items() if not key.startswith(IGNORED)}
    if settings.get("speculators_model_type") == "dflash":
        return _speculators(settings, name), kept
    if "dflash_config" in settings:
        return _dflash(settings, name), kept
    raise ValueError(f"{name} holds no block head: its config.json has neither specdec_head nor dflash_config")


def write_foreign(
    config: BlockConfig, tensors: Mapping[str, Tensor], target_layers: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a head as DFlash's own code, vLLM and SGLang read them.

    Args:
        config: of the head.
        tensors: its `state_dict`.
        target_layers: decoder layers of its target.

    Raises:
        ValueError: it has parts that DFlash heads do not have.
    """
    own = {
        "from_root": not config.from_root,
        "lead": not config.lead,
        "rank": not config.rank,
        "mask_token": config.mask_token is not None,
        "hidden_layers": target_layers - 1 not in config.hidden_layers,  # they only know it after the final norm, as -1
    }
    if parts := [f"{name}={getattr(config, name)}" for name, plain in own.items() if not plain]:
        raise ValueError(
            f"this head has {', '.join(parts)}, which DFlash heads do not have; train it with from_root=false, "
            "lead=false, rank=0, a mask_token, and without the last hidden layer"
        )
    settings = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        **config.decoder,
        "rope_theta": config.decoder["rope_parameters"]["rope_theta"],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": str(tensors["fc.weight"].dtype).removeprefix("torch."),
        "layer_types": ["full_attention"] * config.decoder["num_hidden_layers"],
        "num_target_layers": target_layers,
        "block_size": config.rows,
        "dflash_config": {
            "mask_token_id": config.mask_token,
            "target_layer_ids": [layer % target_layers for layer in config.hidden_layers],
            "causal_head": config.causal,
        },
    }
    return settings, dict(tensors)


def _dflash(settings: Mapping[str, Any], name: str | Path) -> BlockConfig:
    own = settings["dflash_config"]
    if other := sorted(set(own) - DFLASH):
        raise ValueError(
            f"the DFlash head {name} has {', '.join(other)} in its dflash_config, which cannot be run here"
        )
    if lacking := [key for key in ("mask_token_id", "target_layer_ids") if own.get(key) is None]:
        raise ValueError(f"the config.json of {name} lacks dflash_config.{lacking[0]}; copy it again")
    block_size = own.get("block_size") or settings.get("block_size") or 16
    last = settings.get("num_target_layers", 0) - 1  # transformers gives the last layer's output after the final norm
    chosen = tuple(-1 if layer == last else int(layer) for layer in own["target_layer_ids"])
    causal = bool(own.get("causal_head", settings.get("is_causal", False)))
    return _config(settings, name, block_size, chosen, own["mask_token_id"], causal, from_root=False)


def _speculators(settings: Mapping[str, Any], name: str | Path) -> BlockConfig:
    layers = settings.get("transformer_layer_config", {})
    if settings.get("projector_type", "dflash") != "dflash":
        raise ValueError(f"{name} has projector_type {settings['projector_type']!r}; only 'dflash' can be run here")
    if settings.get("draft_vocab_size") not in (None, layers.get("vocab_size")):
        raise ValueError(
            f"{name} drafts {settings['draft_vocab_size']} of {layers.get('vocab_size')} tokens; only heads of the "
            "target's whole vocabulary can be run here"
        )
    ids = settings.get("aux_hidden_state_layer_ids") or ()
    if settings.get("mask_token_id") is None or not ids or min(ids) < 1:
        raise ValueError(
            f"{name} has mask_token_id {settings.get('mask_token_id')} and aux_hidden_state_layer_ids {list(ids)}; "
            "expected a token and layers from 1 on"
        )
    from_root = bool(settings.get("sample_from_anchor", False))
    chosen, block_size = tuple(int(i) - 1 for i in ids), settings.get("block_size", 8)
    return _config(layers, name, block_size, chosen, settings["mask_token_id"], False, from_root)


def _config(
    layers: Mapping[str, Any],
    name: str | Path,
    block_size: int,
    hidden_layers: tuple[int, ...],
    mask_token: int,
    causal: bool,
    from_root: bool,
) -> BlockConfig:
    """`layers` is a Qwen3Config as json; `block_size` counts rows, the root's included."""
    if "sliding_attention" in (layers.get("layer_types") or ()):
        raise ValueError(f"{name} has sliding-window layers, whose windows would cut the block; it cannot be run here")
    if "hidden_size" not in layers or "vocab_size" not in layers:
        raise ValueError(f"the config.json of {name} lacks hidden_size or vocab_size; copy it again")
    decoder = layer_settings(Qwen3Config, DECODER, layers, name)
    depth = block_size if from_root else block_size - 1
    return BlockConfig(layers["vocab_size"], depth, hidden_layers, decoder, causal, from_root, False, 0, mask_token)
