"""Running a tree level by level: where each level's nodes go among the scratch places, and whom they see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from specdec.tree.grow import Frontier
from specdec.tree.token_tree import WORD_BITS, num_words


@dataclass(frozen=True, slots=True)
class Level:
    """The nodes of a frontier, behind texts that end with the root.

    Attributes:
        first: scratch place of the first one.
        depths: `[B, F]` int32, position behind the text: 0 right below the root.
        words: `[B, F, W]` int64, visibility over all scratch nodes.
    """

    first: int
    depths: Tensor
    words: Tensor


class Levels:
    """Takes the frontiers of one tree in turn.

    Args:
        batch: B.
        nodes: most that are expanded, see `count_expanded`.
        device: where the levels are run.
    """

    def __init__(self, batch: int, nodes: int, device: torch.device):
        self.batch, self.words, self.device = batch, num_words(nodes), device
        self._done = 0
        self._visible: Tensor | None = None  # [B, F, W] of the last frontier

    def place(self, frontier: Frontier) -> Level:
        """Where its nodes go: behind those of the frontiers before."""
        first, width = self._done, frontier.tokens.shape[1]
        words = _own_bits(first, width, self.words, self.device).expand(self.batch, -1, -1)
        if self._visible is not None:
            parents = frontier.parents.to(self.device)[..., None].expand(-1, -1, self.words)
            words = words | self._visible.gather(1, parents)
        self._done, self._visible = first + width, words
        depths = torch.full((self.batch, width), frontier.level - 1, dtype=torch.int32, device=self.device)
        return Level(first, depths, words)


@cache  # a CUDA graph may hold what it gives
def _own_bits(first: int, count: int, words: int, device: torch.device) -> Tensor:
    """`[1, count, words]` int64: bit `first + i` in row i."""
    place = torch.arange(first, first + count, device=device)
    bits = torch.zeros(1, count, words, dtype=torch.int64, device=device)
    bits[0, torch.arange(count, device=device), place // WORD_BITS] = torch.ones_like(place) << (place % WORD_BITS)
    return bits
