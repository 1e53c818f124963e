"""Trees of some nodes against the same on lists."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.tree.compact import compact
from specdec.tree.token_tree import TokenTree

from ..fakes import check_shape


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[bool]]:
    size = draw(st.integers(1, 9))
    tokens = [draw(st.integers(0, 50)) for _ in range(size)]
    parents = [-1, *(draw(st.integers(0, j - 1)) for j in range(1, size))]
    keep: list[bool] = []
    for parent in parents:
        keep.append(draw(st.booleans()) and (parent < 0 or keep[parent]))
    return tokens, parents, keep


def naive(tokens: list[int], parents: list[int], keep: list[bool], most: int) -> tuple[list[int], list[int]]:
    kept = [j for j in range(len(tokens)) if keep[j]][:most]
    return [tokens[j] for j in kept], [kept.index(parents[j]) if parents[j] >= 0 else -1 for j in kept]


@given(st.lists(trees(), min_size=1, max_size=4), st.integers(1, 10))
def test_as_on_lists(given: list[tuple[list[int], list[int], list[bool]]], most: int) -> None:
    width = max(len(tokens) for tokens, _, _ in given)
    padded = [
        (t + [9] * (width - len(t)), p + [-1] * (width - len(p)), k + [False] * (width - len(k))) for t, p, k in given
    ]
    tokens, parents, keep = (torch.tensor([row[i] for row in padded]) for i in range(3))
    found = compact(tokens, parents.int(), keep, most)
    check_shape(found)
    assert found.max_nodes == most
    expected = TokenTree.from_lists([naive(*tree, most) for tree in given])
    assert torch.equal(found.sizes, expected.sizes)
    shared = expected.max_nodes
    assert torch.equal(found.tokens[:, :shared], expected.tokens)
    assert torch.equal(found.parents[:, :shared], expected.parents)
