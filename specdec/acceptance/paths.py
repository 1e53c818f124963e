"""From a node to its row of a tensor, and to the path that leads there."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core import Verdict
from specdec.tree.token_tree import TokenTree


class PerSlot:
    """Rows of V for every slot, `count` each, which some of the slots write at a time: without asking the host which,
    and without reading rows that stay. A row that nobody has written means nothing.

    Args:
        batch: B.
        count: rows of a slot.
        like: `[..., V]`, of the same kind.
    """

    def __init__(self, batch: int, count: int, like: Tensor):
        self._rows = like.new_empty(batch * count + 1, like.shape[-1])  # the last one takes what is not to be written
        self._first = torch.arange(batch, device=like.device) * count  # [B]

    def at(self, place: Tensor | int) -> Tensor:
        """`[B, V]`, of the slots' rows `place` `[B]`; a copy."""
        return self._rows.index_select(0, self._first + place)

    def of(self, place: Tensor, token: Tensor) -> Tensor:
        """`[B]`, their numbers for `token` `[B]`."""
        return self._rows[self._first + place, token]

    def put(self, place: Tensor | int, writes: Tensor, values: Tensor) -> None:
        """`values` `[B, V]` where `writes` `[B]` bool."""
        if writes.device.type == "cpu" and not writes.any():
            return
        rows = torch.where(writes, self._first + place, len(self._rows) - 1)
        self._rows.index_copy_(0, rows, values.to(self._rows.dtype))


def row_of(values: Tensor, node: Tensor) -> Tensor:
    """`[B, V]`: the rows of `values` `[B, N, V]` at `node` `[B]`, a copy."""
    rows = torch.arange(len(node), device=node.device)
    if not values.is_contiguous():
        return values[rows, node]
    return values.flatten(0, 1).index_select(0, rows * values.shape[1] + node)  # a third of the time


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
