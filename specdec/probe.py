"""A forward pass over two tokens that shows what a model's layers do with a cache and an attention function of ours.

Every layer must store its KV in the cache and hand over its queries, with the window that the configuration speaks of,
and with nothing that we would ignore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from specdec.attention import evaluating, plugged_in
from specdec.cache import LayerShape, RowsOnly

PROBE = "specdec_probe"
# What attention layers may hand over that changes nothing here. Any other tensor would be silently ignored.
HARMLESS_TENSORS = {"position_ids", "cache_position"}


class _Recorder(RowsOnly):
    """A cache that keeps nothing and notes what the layers do: their KV shapes, and what they ask of the attention."""

    is_sliding: Sequence[bool] = ()

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.windows: dict[int, int] = {}
        self.ignored: set[str] = set()
        self.attended = 0
        self._layer = 0

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype)
        self._layer = layer
        return key, value

    def attend(self, mask: object, window: int | None, rest: Mapping[str, object]) -> None:
        self.attended += 1
        self.windows[self._layer] = window or 0
        self.ignored |= {k for k, v in rest.items() if isinstance(v, Tensor) and k not in HARMLESS_TENSORS}
        if mask is not None:
            self.ignored.add("attention_mask")


def _probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    *,
    specdec_rows: Any = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    if specdec_rows is not None:
        specdec_rows.attend(attention_mask, sliding_window, rest)
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(PROBE, _probe_attention)


def stored_layers(model: PreTrainedModel, configs: Sequence[PreTrainedConfig]) -> list[int]:
    """The numbers under which layers store their KV, and then attend, in a forward pass.

    Raises:
        ValueError: see `layer_shapes`.
    """
    recorder = _record(model, configs)
    return sorted(recorder.shapes) if recorder.attended == len(recorder.shapes) else []


@torch.inference_mode()
def _record(model: PreTrainedModel, configs: Sequence[PreTrainedConfig]) -> _Recorder:
    """A forward pass over two tokens."""
    name, recorder = type(model).__name__, _Recorder()
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    try:
        with evaluating(model), plugged_in(configs, PROBE):
            model(tokens, position_ids=positions, past_key_values=recorder, use_cache=True, specdec_rows=recorder)
    except Exception as error:
        own = "" if getattr(model, "_supports_attention_backend", True) else "it uses its own attention: "
        raise ValueError(
            f"{name} cannot be verified in trees: {own}a forward pass with our cache and positions failed "
            f"({type(error).__name__}: {error}). It must accept position_ids, past_key_values and keyword arguments"
        ) from error
    return recorder


def layer_shapes(model: PreTrainedModel, configs: Sequence[PreTrainedConfig]) -> list[LayerShape]:
    """KV shapes of every layer.

    Raises:
        ValueError: the model does not keep its KV in the cache it is given, attends by itself, or asks of attention
            what ours does not know.
    """
    name, recorder = type(model).__name__, _record(model, configs)
    count = len(recorder.shapes)
    if not count or sorted(recorder.shapes) != list(range(count)) or recorder.attended != count:
        raise ValueError(
            f"{name} uses its own attention, or hands it no keyword arguments: {recorder.attended} calls of ours "
            f"and {count} stored KVs in {model.config.get_text_config().num_hidden_layers} layers; use one that has "
            "transformers' AttentionInterface"
        )
    if recorder.ignored:
        raise ValueError(
            f"{name} hands {', '.join(sorted(recorder.ignored))} to its attention, which tree attention does not take; "
            "use a model with plain attention"
        )
    for layer, window in enumerate(_windows(model.config.get_text_config(), recorder)):
        if window and recorder.windows[layer] != window:
            raise ValueError(
                f"{name} has a sliding window of {window} in layer {layer} that it does not hand to its attention; "
                "it would be ignored. Set sliding_window to None in its config if its texts are shorter"
            )
    return [recorder.shapes[i] for i in range(count)]


def _windows(config: PreTrainedConfig, recorder: _Recorder) -> list[int]:
    """The window every layer should have by the configuration; 0 for none, or where it does not say."""
    window, count = getattr(config, "sliding_window", None) or 0, len(recorder.shapes)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return [window if kind == "sliding_attention" else 0 for kind in kinds]
    used = window and getattr(config, "use_sliding_window", True) and not any(recorder.windows.values())
    return [window if used else 0] * count
