"""Trees merged on the device: node for node those that the host merges from lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.tree.merge import merge_continuations
from specdec.tree.token_tree import TokenTree, merge_paths

from ..fakes import check_shape

Paths = list[list[int]]


def merge(roots: list[int], paths: list[Paths], max_nodes: int, width: int, depth: int) -> TokenTree:
    """From lists: `width` paths of `depth` tokens, the rest full of a token that counts nowhere."""
    tokens = torch.full((len(roots), width, depth), 1)
    lengths = torch.zeros(len(roots), width, dtype=torch.int32)
    for b, rows in enumerate(paths):
        for k, row in enumerate(rows):
            tokens[b, k, : len(row)] = torch.tensor(row)
            lengths[b, k] = len(row)
    return merge_continuations(torch.tensor(roots), tokens, lengths, max_nodes)


def check(roots: list[int], paths: list[Paths], max_nodes: int, width: int, depth: int) -> None:
    tree = merge(roots, paths, max_nodes, width, depth)
    check_shape(tree)
    assert tree.max_nodes == min(max_nodes, 1 + width * depth)
    for b, (root, rows) in enumerate(zip(roots, paths, strict=True)):
        size = int(tree.sizes[b])
        found = tree.tokens[b, :size].tolist(), tree.parents[b, :size].tolist()
        assert found == merge_paths(root, rows, max_nodes)


@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=4)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 25),
)
def test_as_the_host_merges(batch: list[tuple[int, Paths]], max_nodes: int) -> None:
    check([root for root, _ in batch], [paths for _, paths in batch], max_nodes, 4, 5)


@pytest.mark.parametrize("max_nodes", [1, 2, 3, 4, 5, 6, 9])
def test_nodes_go_to_earlier_paths_first(max_nodes: int) -> None:
    paths = [[1, 2, 3], [1, 2, 4, 5], [1, 9], [1, 2, 4, 5]]
    check([7, -1, 7], [paths, paths, [[], [6, 6], [6, 6, 6]]], max_nodes, 4, 4)


def test_equal_tokens_below_different_ones_are_not_shared() -> None:
    tree = merge([0], [[[1, 5, 5], [2, 5, 5], [1, 5, 6]]], 16, 3, 3)
    assert tree.paths(0) == [[0, 1, 5, 5], [0, 2, 5, 5], [0, 1, 5, 6]]
    assert int(tree.sizes) == 8
