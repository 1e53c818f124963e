"""Unions of trees against merged lists, and which path is which."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.tree.token_tree import TokenTree, merge_paths
from specdec.tree.union import choose, path_keys, union

from ..fakes import check_shape

PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=4)
BATCH = st.lists(st.tuples(st.integers(-1, 2), PATHS, PATHS, PATHS), min_size=1, max_size=3)


def all_paths(tree: TokenTree, slot: int) -> list[tuple[int, ...]]:
    """Every node's path."""
    paths: list[tuple[int, ...]] = []
    size = int(tree.sizes[slot])
    for token, parent in zip(tree.tokens[slot, :size].tolist(), tree.parents[slot, :size].tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def build(batch: list[Any]) -> list[TokenTree]:
    return [TokenTree.from_paths([row[0] for row in batch], [row[i] for row in batch]) for i in (1, 2, 3)]


@given(BATCH, st.integers(1, 12))
def test_a_union_is_what_merging_all_paths_gives(batch, max_nodes: int) -> None:
    trees = build(batch)
    found = union(trees, max_nodes)
    check_shape(found)
    for slot, row in enumerate(batch):
        whole = TokenTree.from_lists([merge_paths(row[0], [*row[1], *row[2], *row[3]])])
        assert set(all_paths(found, slot)) <= set(all_paths(whole, 0))
        assert all_paths(found, slot) == all_paths(whole, 0)[:max_nodes]


@given(BATCH)
def test_equal_paths_have_equal_keys_and_others_do_not(batch) -> None:
    keys: dict[int, tuple[int, ...]] = {}
    for tree in build(batch):
        for slot in range(tree.batch_size):
            for path, key in zip(all_paths(tree, slot), path_keys(tree)[slot].tolist(), strict=False):
                assert keys.setdefault(key, path) == path
    assert len(keys) == len(set(keys.values()))


def test_keys_of_many_paths_differ() -> None:
    """Also of those that differ in the order of their tokens alone."""
    tokens = torch.cartesian_prod(*[torch.arange(0, 150_000, 11_111)] * 3)  # [2744, 3]
    keys = path_keys(TokenTree.chain(torch.cat([torch.ones(len(tokens), 1, dtype=torch.int64), tokens], 1)))
    assert len(keys[:, 1:].unique()) == 14 + 14**2 + 14**3


@given(BATCH, st.lists(st.integers(0, 2), min_size=3, max_size=3), st.integers(1, 9))
def test_choose(batch, chosen: list[int], max_nodes: int) -> None:
    trees = build(batch)
    found = choose(trees, torch.tensor(chosen[: len(batch)]), max_nodes)
    check_shape(found)
    for slot in range(len(batch)):
        assert all_paths(found, slot) == all_paths(trees[chosen[slot]], slot)[:max_nodes]
