"""Riders against plain Python: the rows that a target runs, and a tree that knows nothing of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.tree.riders import Riders, rider_rows
from specdec.tree.token_tree import TokenTree

from ..fakes import check_shape, climb
from .test_token_tree import Tree, trees


@st.composite
def riders(draw: st.DrawFn, batch: int, most: int = 8) -> Riders:
    """Random rows, tokens of their own for every sequence."""
    count = draw(st.integers(1, most))
    parents = [draw(st.integers(-1, r - 1)) for r in range(count)]
    tokens = [draw(st.lists(st.integers(10, 19), min_size=count, max_size=count)) for _ in range(batch)]
    return Riders(torch.tensor(tokens), torch.tensor(parents))


def with_riders(batch: list[Tree], given: Riders) -> TokenTree:
    made = TokenTree.from_lists(batch)
    return TokenTree(made.tokens, made.parents, made.sizes, riders=given)


@given(st.data(), st.lists(trees(), min_size=1, max_size=4))
def test_rows_against_lists(data: st.DataObject, batch: list[Tree]) -> None:
    """Live nodes, then riders, then padding; nodes see what they saw, riders the root and those above them."""
    made = with_riders(batch, data.draw(riders(len(batch))))
    assert made.riders is not None
    check_shape(made)
    assert made.rows.max_nodes == made.max_nodes + made.riders.count
    for b, (tokens, parents) in enumerate(batch):
        size = len(tokens)
        seated = [size + above if above >= 0 else 0 for above in made.riders.parents.tolist()] if size else []
        all_tokens = tokens + made.riders.tokens[b].tolist() if size else []
        assert int(made.rows.sizes[b]) == len(all_tokens)
        assert made.rows.tokens[b, : len(all_tokens)].tolist() == all_tokens
        assert made.rows.parents[b, : len(all_tokens)].tolist() == parents + seated
        for j in range(len(all_tokens)):
            seen = climb(parents + seated, j)
            assert made.rows.ancestors[b, j].nonzero()[:, 0].tolist() == sorted(seen)
            assert int(made.rows.depths[b, j]) == len(seen) - 1
        if size:
            found = rider_rows(made.sizes, made.riders.count)[b]
            assert made.rows.tokens[b, found].tolist() == made.riders.tokens[b].tolist()


@given(st.data(), st.lists(trees(vocab=20), min_size=1, max_size=3), st.integers(0, 11), st.integers(0, 19))
def test_the_tree_itself_knows_no_riders(data: st.DataObject, batch: list[Tree], node: int, token: int) -> None:
    made, plain = with_riders(batch, data.draw(riders(len(batch)))), TokenTree.from_lists(batch)
    for name in ("tokens", "parents", "sizes", "depths", "words", "ancestors"):
        assert torch.equal(getattr(made, name), getattr(plain, name))
    nodes, tokens = torch.full((len(batch),), node), torch.full((len(batch),), token)
    assert torch.equal(made.child(nodes, tokens), plain.child(nodes, tokens))
    assert [made.paths(b) for b in range(len(batch))] == [plain.paths(b) for b in range(len(batch))]


@pytest.mark.parametrize(("size", "count"), [(1, 63), (1, 64), (60, 5), (63, 2), (64, 64), (100, 29)])
def test_rows_of_many_words(size: int, count: int) -> None:
    """A chain of riders beside a chain of nodes, across the ends of words."""
    chain = (list(range(size)), list(range(-1, size - 1)))
    made = with_riders([chain, ([3], [-1]), ([], [])], Riders(torch.ones(3, count).long(), torch.arange(-1, count - 1)))
    check_shape(made)
    for b, nodes in ((0, size), (1, 1)):
        assert made.rows.depths[b, : nodes + count].tolist() == [*range(nodes), *range(1, count + 1)]
        last = made.rows.ancestors[b, nodes + count - 1].nonzero()[:, 0].tolist()
        assert last == [0, *range(nodes, nodes + count)]


def test_slots_that_are_emptied_have_no_riders() -> None:
    made = with_riders([([1, 2], [-1, 0]), ([3], [-1])], Riders(torch.full((2, 2), 9), torch.tensor([-1, 0])))
    left = made.only(torch.tensor([False, True]))
    check_shape(left)
    assert left.rows.sizes.tolist() == [0, 3]
    assert made.rows.sizes.tolist() == [4, 3]
    assert TokenTree.roots(torch.tensor([1])).rows.sizes.tolist() == [1]
