"""Visibility of a tree's nodes, from their parents."""

from torch import Tensor

from specdec.kernels.ancestor_words.naive import ancestor_words as naive


def ancestor_words(parents: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Which nodes each node sees: its ancestors and itself.

    Args:
        parents: `[B, N]` int32, -1 for roots, else smaller than the node.
        sizes: `[B]` int32, live nodes.

    Returns:
        words `[B, N, W]` int64, bit i of row j set when node i is visible to node j; depths `[B, N]` int32. Both are 0
        for padding.
    """
    return naive(parents, sizes)
