"""Several trees with the same roots: which nodes stand for the same text, and one tree of them all, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.tree.compact import compact
from specdec.tree.token_tree import TokenTree

MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # odd 64-bit numbers of no meaning


def token_keys(tokens: Tensor, depths: Tensor) -> Tensor:
    """A 64-bit number for every token at its depth; both of any shape, the same."""
    mixed = (tokens * MIX[0]) ^ (depths.long() * MIX[1] + MIX[2])
    mixed = (mixed ^ (mixed >> 29)) * MIX[1]
    return (mixed ^ (mixed >> 32)) * MIX[2]


def path_keys(tree: TokenTree) -> Tensor:
    """`[B, N]` int64: nodes with equal paths from the root have equal numbers, and others do not (but by a chance of
    2^-64). It is the sum of `token_keys` along the path."""
    return (tree.ancestors * token_keys(tree.tokens, tree.depths)[:, None]).sum(-1)


def side_by_side(trees: Sequence[TokenTree]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All nodes of every slot in a row: tokens, parents (in the row), whether they are live, and which tree's they are
    (`[M]`); the others `[B, M]`."""
    tokens, parents, live, numbers = [], [], [], []
    start = 0
    for number, tree in enumerate(trees):
        node = torch.arange(tree.max_nodes, device=tree.tokens.device)
        tokens.append(tree.tokens)
        parents.append(torch.where(tree.parents >= 0, tree.parents.long() + start, -1))
        live.append(node < tree.sizes[:, None])
        numbers.append(torch.full_like(node, number))
        start += tree.max_nodes
    return torch.cat(tokens, 1), torch.cat(parents, 1), torch.cat(live, 1), torch.cat(numbers)


def union(trees: Sequence[TokenTree], max_nodes: int) -> TokenTree:
    """One tree of all nodes, what is the same text once. The first tree gets its nodes first; the rest is left out."""
    tokens, parents, live, _ = side_by_side(trees)
    keys = torch.cat([path_keys(tree) for tree in trees], 1)  # [B, M]
    equal = (keys[:, :, None] == keys[:, None]) & live[:, None]  # [B, M, M]
    first = equal.int().argmax(-1)  # [B, M]
    keep = live & (first == torch.arange(tokens.shape[1], device=tokens.device))
    above = torch.where(parents >= 0, first.gather(1, parents.clamp_min(0)), -1)
    return compact(tokens, above, keep, max_nodes)


def choose(trees: Sequence[TokenTree], chosen: Tensor, max_nodes: int) -> TokenTree:
    """For every slot the tree of the number `chosen` `[B]`, cut off at `max_nodes`."""
    tokens, parents, live, number = side_by_side(trees)
    return compact(tokens, parents, live & (number == chosen[:, None]), max_nodes)
