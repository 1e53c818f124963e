"""Drawing among a few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from specdec.sampling.draft import DraftNoise


@dataclass(frozen=True, slots=True)
class Among:
    """DraftNoise of a drafter whose logits are those of a few tokens; it drafts no others.

    Attributes:
        noise: what is drawn with.
        tokens: `[B, D, C]` int64, the tokens at every depth, all different.
    """

    noise: DraftNoise
    tokens: Tensor

    def choose(
        self, logits: Tensor, depth: int, count: int, path: Tensor, **how: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `DraftNoise.choose`, but for `logits` `[B, F, C]`; the distribution is over all tokens."""
        ids = self.tokens[:, depth, None].expand(-1, logits.shape[1], -1)  # [B, F, C]
        if self.noise.raw:
            best, log_probs, _ = self.noise.choose(logits, depth, count, path, **how)
            return ids.gather(-1, best), log_probs, None
        everywhere = logits.new_full((*logits.shape[:2], self.noise.vocab_size), float("-inf"))
        return self.noise.choose(everywhere.scatter(-1, ids, logits), depth, count, path, **how)
