"""Merge continuations into trees on the device: static shapes, no host read.

What `TokenTree.from_paths` does for lists on the host, node for node.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.tree.token_tree import TokenTree


def merge_continuations(roots: Tensor, tokens: Tensor, lengths: Tensor, max_nodes: int) -> TokenTree:
    """Trees in which continuations share the nodes of their common beginnings.

    A token is a node of its own unless an earlier path begins with the same tokens up to and with it. Nodes are
    numbered path after path, so a parent comes before its children and a tree that is cut off is still a tree.

    Args:
        roots: `[B]` int64, -1 for an empty slot.
        tokens: `[B, K, D]` int64, K continuations without the root, the most likely first.
        lengths: `[B, K]`, how many tokens of each count.
        max_nodes: earlier paths get their nodes first; what does not fit is left out.

    Returns:
        Trees padded to `min(max_nodes, 1 + K * D)` nodes, whatever their sizes.
    """
    batch, paths, depth = tokens.shape
    nodes = min(max_nodes, 1 + paths * depth)
    live = (torch.arange(depth, device=tokens.device) < lengths[..., None]) & (roots >= 0)[:, None, None]  # [B, K, D]
    equal = (tokens[:, :, None] == tokens[:, None]) & live[:, :, None] & live[:, None]  # [B, K, K, D]
    owner = equal.int().cumprod(-1).argmax(2)  # [B, K, D]: the first path that begins the same
    fresh = live & (owner == torch.arange(paths, device=tokens.device)[:, None])
    number = fresh.flatten(1).cumsum(1)  # [B, K * D], the root is 0
    owned = (owner * depth + torch.arange(depth, device=tokens.device)).flatten(1)
    node = number.gather(1, owned).view_as(tokens)  # [B, K, D]
    parent = torch.cat([torch.zeros_like(node[..., :1]), node[..., :-1]], -1)
    kept = fresh & (node < nodes)
    place = torch.where(kept, node, nodes).flatten(1)  # one column more takes what is left out
    all_tokens = tokens.new_zeros(batch, nodes + 1).scatter_(1, place, tokens.flatten(1))
    parents = tokens.new_full((batch, nodes + 1), -1).scatter_(1, place, parent.flatten(1))
    all_tokens[:, 0] = roots.clamp_min(0)
    sizes = (roots >= 0) + kept.flatten(1).sum(1)
    return TokenTree(all_tokens[:, :nodes].contiguous(), parents[:, :nodes].int().contiguous(), sizes.int())
