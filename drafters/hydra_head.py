"""Hydra's heads: Medusa's, but head k also reads the tokens that were drafted before it.

The first residual block reads the hidden state before the root beside the target's embeddings of the root and of the k
tokens below it. Ankner et al., arXiv 2402.05109.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from specdec.drafters.medusa_head import Config, MedusaHead, zeros
from specdec.heads import Export


class HydraHead(MedusaHead):
    """All K heads. See the module."""

    kind: ClassVar[str] = "hydra"
    formats: ClassVar[Mapping[str, Callable[[Any, Any], Export]]] = {}  # nobody else runs them

    def __init__(self, config: Config):
        super().__init__(config)
        size = config.hidden_size
        self.conditions = nn.ModuleList(zeros((k + 1) * size, size, bias=False) for k in range(config.heads))
        self.embedding: Tensor | None = None  # [V, H], the target's

    def bind(self, embedding: Tensor, lm_head: Tensor) -> None:
        """See TrainableHead."""
        super().bind(embedding, lm_head)
        self.embedding = embedding

    def guess(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """See MedusaHead; a path's logits depend on its tokens."""
        assert self.embedding is not None, "bind the head to its target first"
        level = tokens.shape[-1] - 1
        condition = self.conditions[level](self.embedding[tokens].flatten(2))  # [B, F, H]
        return self._lm_logits(level, self.blocks[level](hidden[:, None], condition))
