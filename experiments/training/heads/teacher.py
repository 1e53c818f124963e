"""The frozen target over whole sequences: its hidden states, and its logits where a head is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.attention import evaluating
from specdec.inspection import hidden_modules, tap

Hidden = dict[int, Tensor]  # layer -> [B, L, H]


class Teacher:
    """See the module.

    Args:
        model: the target. It is not changed.
        hidden_layers: those that the head reads (see TargetOutput).

    Raises:
        ValueError: the target has no such layer.
    """

    def __init__(self, model: PreTrainedModel, hidden_layers: tuple[int, ...]):
        self.model = model
        self._taps = hidden_modules(model, hidden_layers)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, anchors: Tensor, depth: int) -> tuple[Hidden, Tensor]:
        """One forward pass; the LM head runs only where it is needed.

        Args:
            tokens: `[B, L]` int64, right padded: later tokens change nothing.
            anchors: `[B, A]` int64, places r of roots.
            depth: K.

        Returns:
            Hidden states, and logits `[B, A, K, V]`: entry k is the target's distribution of the token at r + 1 + k.
        """
        places = (anchors[..., None] + torch.arange(depth, device=anchors.device)).flatten(1)  # [B, A * K]

        def only(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            wanted = places[..., None].expand(-1, -1, inputs[0].shape[-1])
            return inputs[0].gather(1, wanted), *inputs[1:]

        head = self.model.get_output_embeddings().register_forward_pre_hook(only)
        try:
            with self._reading() as hidden:
                logits = self.model(tokens, use_cache=False).logits
        finally:
            head.remove()
        return hidden, logits.view(*anchors.shape, depth, -1)

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Hidden:
        """Hidden states alone. `tokens` `[B, L]` int64."""
        with self._reading() as hidden:
            self.model.get_decoder()(tokens, use_cache=False)
        return hidden

    @contextmanager
    def _reading(self) -> Iterator[Hidden]:
        taken: Hidden = {}
        hooks: list[Any] = [m.register_forward_hook(tap(taken, layer)) for layer, m in self._taps.items()]
        try:
            with evaluating(self.model):
                yield taken
        finally:
            for hook in hooks:
                hook.remove()
