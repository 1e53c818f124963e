"""Trees that grow where the drafter is sure: the nodes with the most likely paths, under a budget.

As in EAGLE-2 (arXiv 2406.16858): every level expands the `width` most likely paths of the one before by their `top_k`
children each, and at the end the `max_nodes` most likely nodes of all are kept. A path is never more likely than its
own beginning, so what is kept is a tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BestFirst:
    """See the module.

    Args:
        max_nodes: nodes of the finished tree, the root included.
        depth: levels below the root.
        top_k: children drafted for every expanded node.
        width: nodes expanded at every level; None for `top_k`.

    Raises:
        ValueError: a number is below 1, or no node beyond the root fits.
    """

    fixed_shape: ClassVar[bool] = False

    max_nodes: int = 16
    depth: int = 5
    top_k: int = 4
    width: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_nodes", 2), ("depth", 1), ("top_k", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"tree.{name} is {getattr(self, name)}; expected at least {least}")
        if self.width is not None and self.width < 1:
            raise ValueError(f"tree.width is {self.width}; expected at least 1, or null for top_k")

    def branching(self, level: int) -> int:
        """See TreePolicy."""
        return self.top_k

    def grow(self, level: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See TreePolicy: all candidates are kept for now, the best are expanded."""
        flat = scores.flatten(1)  # [B, F * K]
        kept = _all(flat.shape[1], flat.device).expand(len(flat), -1)
        width = min(self.width or self.top_k, flat.shape[1])
        return kept, flat.topk(width, dim=-1).indices.sort(-1).values

    def prune(self, scores: Tensor) -> Tensor | None:
        """See TreePolicy. The sort is stable, so that a parent wins against its equally likely child."""
        if scores.shape[1] < self.max_nodes:
            return None
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        return order[:, : self.max_nodes - 1].sort(-1).values


@cache  # a CUDA graph may hold what it gives
def _all(count: int, device: torch.device) -> Tensor:
    """`[count]` int64: 0, 1, ..."""
    return torch.arange(count, device=device)
