"""Looks at a transformers model before it is used, and refuses what would fail or, worse, be silently wrong.

Three looks. The configuration: architectures that cannot work. A probe of two tokens (see `probe`). A small tree: it
must give the logits that the model itself gives for each of its paths.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from specdec.attention import attention_configs, evaluating, plugged_in
from specdec.tree.token_tree import TokenTree

if TYPE_CHECKING:
    from specdec.target import Target

KNOWN_LAYERS = {"full_attention", "sliding_attention", "attention", "global", "local"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
NAN_LOGITS = "logits are NaN; the weights are damaged, or the dtype overflows (try float32 or bfloat16)"
# A wrong position or mask changes logits by about their own size; rounding does not come near these.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}

_checked: weakref.WeakKeyDictionary[PreTrainedModel, set[str]] = weakref.WeakKeyDictionary()  # by backends


def check_architecture(model: object) -> None:
    """Refuse what the configuration already shows to be impossible.

    Raises:
        ValueError: not a causal language model of transformers on one device, or layers that are not plain attention.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"the target is a {type(model).__name__}; expected a transformers causal language model")
    name, config = type(model).__name__, model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; specdec needs a decoder-only causal language model")
    if model.get_output_embeddings() is None or not model.can_generate():
        raise ValueError(f"{name} has no language-model head to generate with; load it with AutoModelForCausalLM")
    kinds = sorted(set(getattr(config, "layer_types", None) or []) - KNOWN_LAYERS)
    if kinds:
        raise ValueError(
            f"{name} has layers of type {', '.join(kinds)}; specdec needs full or sliding-window attention in every "
            "layer (a recurrent state, for one, cannot be rolled back to an accepted path)"
        )
    if getattr(model, "_is_stateful", False):
        raise ValueError(
            f"{name} has a recurrent state, which cannot be rolled back to an accepted path; use an attention model"
        )
    devices = sorted({str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(devices) > 1:
        raise ValueError(f"{name} is spread over {', '.join(devices)}; specdec needs the whole model on one device")


def max_positions(model: PreTrainedModel) -> int:
    """Positions that text and drafts may use; 0 for no limit."""
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", 0) or 0, rope_limit(config)[1]]
    return int(min((limit for limit in limits if limit > 0), default=0))


def rope_limit(config: PreTrainedConfig) -> tuple[str, int]:
    """Rotary scaling that depends on the longest text of a batch, and up to where it does not; 0 for everywhere."""
    rope = getattr(config, "rope_parameters", None) or {}
    for settings in rope.values() if any(isinstance(v, dict) for v in rope.values()) else [rope]:
        kind = settings.get("rope_type") if isinstance(settings, dict) else None
        if kind in LENGTH_DEPENDENT_ROPE:
            original = settings.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            return kind, int(original or config.max_position_embeddings)
    return "", 0


def check_length(model: PreTrainedModel, length: int, limit: int) -> None:
    """Refuse texts longer than the model can tell positions apart. `limit` is the model's `max_positions`.

    Raises:
        ValueError: too long, or the rotary embedding would change with the longest text of the batch.
    """
    if not limit or length <= limit:
        return
    name = type(model).__name__
    kind, original = rope_limit(model.config.get_text_config())
    if original == limit:
        raise ValueError(
            f"{name} uses {kind} rotary scaling, which past {limit} tokens depends on the longest text of a batch; "
            f"prompt plus new tokens make {length}. Shorten the prompt or lower max_new_tokens"
        )
    raise ValueError(
        f"prompt plus new tokens make {length} tokens, but {name} has {limit} positions; "
        "shorten the prompt or lower max_new_tokens"
    )


def hidden_modules(model: PreTrainedModel, layers: Sequence[int]) -> dict[int, nn.Module]:
    """The modules whose outputs are the hidden states of `layers` (-1: what the LM head reads).

    Raises:
        ValueError: the model has no such layer.
    """
    count = model.config.get_text_config().num_hidden_layers
    _, blocks = layer_list(model)
    chosen: dict[int, nn.Module] = {}
    for layer in layers:
        if layer == -1:
            chosen[layer] = model.get_decoder()
        elif 0 <= layer < len(blocks):
            chosen[layer] = blocks[layer]
        else:
            raise ValueError(
                f"hidden layer {layer} asked of {type(model).__name__}; expected -1 or 0 to {count - 1}. "
                "A drafter's head fits the target that it was trained for alone"
            )
    return chosen


def layer_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder's layers, and the name of their list within the model; an empty list where there is none."""
    count, decoder = model.config.get_text_config().num_hidden_layers, model.get_decoder()
    within = {id(module) for module in decoder.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in within:
            return name, module
    return "", nn.ModuleList()


def tap(taken: dict[int, Tensor], layer: int) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that puts the module's output `[1, R, H]` into `taken`."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        taken[layer] = output if isinstance(output, Tensor) else output[0]

    return hook


@torch.inference_mode()
def check_logits(target: Target) -> None:
    """Compare a small tree with the model's own forward passes over its two paths; once per model.

    Raises:
        ValueError: they differ by more than rounding, or are NaN.
    """
    model = target.model
    checked = _checked.setdefault(model, set())
    if target.backend in checked:
        return
    vocabulary = target.vocab_size
    prompt = [i * 7919 % vocabulary for i in range(1, 6)]
    paths = [[11 % vocabulary, 23 % vocabulary], [11 % vocabulary, 35 % vocabulary]]
    theirs = torch.stack([_plain_logits(model, prompt + path) for path in paths])  # [2, V]
    if theirs.isnan().any():
        raise ValueError(f"{type(model).__name__}: {NAN_LOGITS}")
    target.open(1, len(prompt) + 2, 4)
    target.prefill([0], [prompt])
    tree = TokenTree.from_lists([([paths[0][0], paths[0][1], paths[1][1]], [-1, 0, 0])], target.device)
    ours = target.verify(tree).logits[0, 1:].float()
    difference = torch.where(ours == theirs, 0.0, ours - theirs)  # some heads give padding of the vocabulary -inf
    size = theirs[theirs.isfinite()].norm()
    if not difference.norm() <= TOLERANCE.get(model.dtype, 0.2) * size:
        raise ValueError(
            f"{type(model).__name__} gives other logits in a tree than by itself (relative difference "
            f"{float(difference.norm() / size):.2g}): it needs inputs that specdec does not give (biases, masks, other "
            "positions), or is not causal, so it cannot be used"
        )
    checked.add(target.backend)


def _plain_logits(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """`[V]` float32 after the last token, with the attention that honours whatever the model asks for: some releases'
    SDPA leaves out soft-capping."""
    with evaluating(model), plugged_in(attention_configs(model), "eager"):
        output: Mapping[str, Any] = model(torch.tensor([tokens], device=model.device), use_cache=False)
    return output["logits"][0, -1].float()
