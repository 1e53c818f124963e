"""Riders: rows that a drafter wants run in the target's forward beside its tree.

They hang below the root in a tree of their own and see what a node there would see, but no acceptance rule is shown
them: they are no draft. Lookahead decoding's window rides so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class Riders:
    """R rows beside every tree; in an empty slot they are not run.

    Attributes:
        tokens: `[B, R]` int64.
        parents: `[R]` int64, the rider above each one, -1 for the root; `parents[r] < r`.
    """

    tokens: Tensor
    parents: Tensor

    @property
    def count(self) -> int:
        """R."""
        return self.tokens.shape[1]


def rider_rows(sizes: Tensor, count: int) -> Tensor:
    """`[B, R]` int64: the rows of `count` riders, which come right after the live nodes; `sizes` `[B]` nodes."""
    return sizes[:, None].long() + torch.arange(count, device=sizes.device)


def seat(tokens: Tensor, parents: Tensor, sizes: Tensor, riders: Riders) -> tuple[Tensor, Tensor, Tensor]:
    """Trees with their riders as further nodes.

    Args:
        tokens, parents, sizes: of trees, `[B, N]`, `[B, N]` and `[B]`.
        riders: what to add.

    Returns:
        The same of `N + R` rows, each sequence's riders after its live nodes.
    """
    live = sizes[:, None] > 0  # [B, 1]
    rows = rider_rows(sizes, riders.count)  # [B, R]
    above = torch.where(riders.parents < 0, 0, sizes[:, None] + riders.parents)  # [B, R]
    all_tokens = pad(tokens, (0, riders.count)).scatter(1, rows, torch.where(live, riders.tokens, 0))
    all_parents = pad(parents, (0, riders.count), value=-1)
    all_parents = all_parents.scatter(1, rows, torch.where(live, above, -1).to(parents.dtype))
    return all_tokens, all_parents, sizes + live[:, 0].to(sizes.dtype) * riders.count
