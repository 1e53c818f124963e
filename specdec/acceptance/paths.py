"""From a node to the path that leads there, for rules that choose a node instead of walking down to it."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core import Verdict
from specdec.tree.token_tree import TokenTree


def verdict_at(tree: TokenTree, node: Tensor, next_token: Tensor) -> Verdict:
    """Accept everything down to `node` `[B]`; `next_token` `[B]` comes after it."""
    nodes = tree.max_nodes
    places = torch.arange(nodes, device=node.device)
    path = torch.where(_above(tree, node), places, nodes).sort(-1).values  # [B, N], the path's nodes first
    path = torch.where(path < nodes, path, -1)
    return Verdict(path, (path >= 0).sum(-1, dtype=torch.int32), next_token)


def tokens_to(tree: TokenTree, node: Tensor, asking: Tensor) -> Tensor:
    """`[B, N + 1]` int64: drafted tokens down to `node` `[B]`, no root where `asking` `[B]`; -1 between them.

    The node's own token is the last entry, -1 where not `asking`: what `StepSampling.probs` wants.
    """
    place = torch.arange(tree.max_nodes, device=node.device)
    above = _above(tree, node) & (place > 0) & (place != node[:, None])  # [B, N], the root is text
    own = torch.where(asking[:, None], tree.tokens.gather(1, node[:, None]), -1)
    return torch.cat([torch.where(above, tree.tokens, -1), own], 1)


def _above(tree: TokenTree, node: Tensor) -> Tensor:
    """`[B, N]` bool: `node` and its ancestors; nothing in an empty slot."""
    return tree.ancestors.gather(1, node[:, None, None].expand(-1, 1, tree.max_nodes))[:, 0]
