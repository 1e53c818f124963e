"""Trees of which only some nodes are wanted, on the device and without asking the host."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.tree.token_tree import TokenTree


def compact(tokens: Tensor, parents: Tensor, keep: Tensor, max_nodes: int) -> TokenTree:
    """Trees of the nodes to keep, in their order, the first `max_nodes` of them.

    Args:
        tokens: `[B, N]` int64.
        parents: `[B, N]`, -1 for roots, else a node before.
        keep: `[B, N]` bool; the parent of a kept node is kept. No node kept: an empty slot.
        max_nodes: nodes of the trees, padding included.
    """
    place = keep.cumsum(1) - 1  # [B, N]
    kept = keep & (place < max_nodes)
    column = torch.where(kept, place, max_nodes)  # one more takes what is left out
    above = torch.where(parents >= 0, place.gather(1, parents.long().clamp_min(0)), -1)
    new_tokens = tokens.new_zeros(len(tokens), max_nodes + 1).scatter_(1, column, tokens)
    new_parents = above.new_full((len(tokens), max_nodes + 1), -1).scatter_(1, column, above)
    sizes = kept.sum(1, dtype=torch.int32)
    return TokenTree(
        new_tokens[:, :max_nodes].contiguous(), new_parents[:, :max_nodes].to(torch.int32).contiguous(), sizes
    )
