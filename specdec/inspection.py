"""Looks at a transformers model before it is used, and refuses what would fail or, worse, be silently wrong.

Two looks: at the configuration, and at a probe. The probe runs a few tokens through our attention and asks that every
layer handed them to us, and that a small tree gives the logits that the model itself gives for each of its paths.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from specdec.attention import plugged_in
from specdec.cache import LayerShape
from specdec.tree.token_tree import TokenTree

if TYPE_CHECKING:
    from specdec.target import Target

PROBE = "specdec_probe"
KNOWN_LAYERS = {"full_attention", "sliding_attention", "attention", "global", "local"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
# A wrong position or mask changes logits by about their own size; rounding does not come near these.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}

_checked: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


def check_architecture(model: object) -> None:
    """Refuse what the configuration already shows to be impossible.

    Raises:
        ValueError: not a transformers model, an encoder-decoder, or layers whose state cannot be rolled back.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"the target is a {type(model).__name__}; expected a transformers causal language model")
    name, config = type(model).__name__, model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; specdec needs a decoder-only causal language model")
    if model.get_output_embeddings() is None:
        raise ValueError(f"{name} has no language-model head; load it with AutoModelForCausalLM")
    kinds = set(getattr(config, "layer_types", None) or []) - KNOWN_LAYERS
    if kinds or getattr(model, "_is_stateful", False):
        what = f"layers of type {', '.join(sorted(kinds))}" if kinds else "a recurrent state"
        raise ValueError(f"{name} has {what}, which cannot be rolled back to an accepted path; use an attention-only model")


def max_positions(model: PreTrainedModel) -> int:
    """Positions the model has; 0 for no limit."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or 0)


def check_length(model: PreTrainedModel, length: int, limit: int) -> None:
    """Refuse texts longer than the model can tell positions apart.

    Raises:
        ValueError: too long, or the rotary embedding would change with the longest text of the batch.
    """
    if limit and length > limit:
        raise ValueError(
            f"prompt plus new tokens make {length} tokens, but {type(model).__name__} has {limit} positions; "
            "shorten the prompt or lower max_new_tokens"
        )
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    for settings in rope.values() if any(isinstance(v, dict) for v in rope.values()) else [rope]:
        original = settings.get("original_max_position_embeddings") if isinstance(settings, dict) else None
        if isinstance(settings, dict) and settings.get("rope_type") in LENGTH_DEPENDENT_ROPE and length > (original or limit):
            raise ValueError(
                f"{type(model).__name__} uses {settings['rope_type']} rotary scaling, which past {original or limit} "
                f"tokens depends on the longest text of a batch; {length} were asked for. Shorten the request"
            )


def hidden_modules(model: PreTrainedModel, layers: Sequence[int]) -> dict[int, nn.Module]:
    """The modules whose outputs are the hidden states of `layers` (-1: what the LM head reads).

    Raises:
        ValueError: the model has no such layer.
    """
    decoder = model.get_decoder()
    count = model.config.get_text_config().num_hidden_layers
    blocks = next((m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    chosen: dict[int, nn.Module] = {}
    for layer in layers:
        if layer == -1:
            chosen[layer] = decoder
        elif blocks is not None and 0 <= layer < count:
            chosen[layer] = blocks[layer]
        else:
            raise ValueError(f"hidden layer {layer} asked of {type(model).__name__}; expected -1 or 0 to {count - 1}")
    return chosen


def tap(taken: dict[int, Tensor], layer: int) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that puts the module's output `[1, R, H]` into `taken`."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        taken[layer] = output if isinstance(output, Tensor) else output[0]

    return hook


class _Recorder:
    """A cache that keeps nothing and notes the shape of every layer's KV."""

    is_compileable = False
    is_sliding: Sequence[bool] = ()

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.attended = 0

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype)
        return key, value

    def get_seq_length(self, layer: int = 0) -> int:
        return 0

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return query_length, 0


def _probe_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, specdec_rows: Any = None, **_: Any
) -> tuple[Tensor, None]:
    if specdec_rows is not None:
        specdec_rows.attended += 1
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(PROBE, _probe_attention)


@torch.inference_mode()
def layer_shapes(model: PreTrainedModel, configs: Sequence[PreTrainedConfig]) -> list[LayerShape]:
    """KV shapes of every layer.

    Raises:
        ValueError: the model does not keep its KV in the cache it is given, or attends by itself.
    """
    name, recorder = type(model).__name__, _Recorder()
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    try:
        with plugged_in(configs, PROBE):
            model(tokens, position_ids=positions, past_key_values=recorder, use_cache=True, specdec_rows=recorder)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be verified in trees: a forward pass with our cache and positions failed "
            f"({type(error).__name__}: {error}). It must accept position_ids, past_key_values and keyword arguments"
        ) from error
    count = len(recorder.shapes)
    if not count or sorted(recorder.shapes) != list(range(count)) or recorder.attended != count:
        raise ValueError(
            f"{name} uses its own attention ({recorder.attended} of {model.config.get_text_config().num_hidden_layers} "
            f"layers called ours, {count} stored their KV); use a model that supports transformers' AttentionInterface"
        )
    return [recorder.shapes[i] for i in range(count)]


@torch.inference_mode()
def check_logits(target: Target) -> None:
    """Compare a small tree with the model's own forward passes over its two paths; once per model.

    Raises:
        ValueError: they differ by more than rounding.
    """
    model = target.model
    if model in _checked:
        return
    vocabulary = target.vocab_size
    prompt = [i * 7919 % vocabulary for i in range(1, 6)]
    paths = [[11 % vocabulary, 23 % vocabulary], [11 % vocabulary, 35 % vocabulary]]
    target.open(1, len(prompt) + 2, 4)
    target.prefill([0], [prompt])
    tree = TokenTree.from_lists([([paths[0][0], paths[0][1], paths[1][1]], [-1, 0, 0])], target.device)
    ours = target.verify(tree).logits[0, 1:].float()  # [2, V]
    theirs = torch.stack([_plain_logits(model, prompt + path) for path in paths])
    error = float((ours - theirs).norm() / theirs.norm())
    if not error <= TOLERANCE.get(model.dtype, 0.2):
        raise ValueError(
            f"{type(model).__name__} gives other logits in a tree than by itself (relative difference {error:.2g}): it "
            "needs inputs that specdec does not give (biases, masks, position tensors), so it cannot be used"
        )
    _checked.add(model)


def _plain_logits(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """`[V]` float32 after the last token."""
    output: Mapping[str, Any] = model(torch.tensor([tokens], device=model.device), use_cache=False)
    return output["logits"][0, -1].float()
