"""Choosing among a few tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specdec.sampling.draft import DraftNoise


class Among:
    """DraftNoise of a drafter whose logits are those of a few tokens: it drafts no others.

    Args:
        noise: must be `raw`; who draws, or penalises, asks which token is which.
        tokens: `[B, D, C]` int64, the tokens at every depth, all different.
    """

    reads_paths = False

    def __init__(self, noise: DraftNoise, tokens: Tensor):
        self.noise = noise
        self.levels = tokens[:, :, None].unbind(1)  # of every depth [B, 1, C]

    def choose(
        self, logits: Tensor, depth: int, count: int, path: Tensor, **how: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `DraftNoise.choose`, but for `logits` `[B, F, C]`; theirs is the whole probability."""
        best, log_probs, _ = self.noise.choose(logits, depth, count, path, **how)  # [B, F, K]
        return self.levels[depth].expand(-1, logits.shape[1], -1).gather(-1, best), log_probs, None
