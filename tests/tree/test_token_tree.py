"""TokenTree against plain Python: a list of parents per sequence, climbed one node at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.tree.token_tree import WORD_BITS, TokenTree, merge_paths, split_words

from ..fakes import check_shape, climb

Tree = tuple[list[int], list[int]]  # tokens, parents


@st.composite
def trees(draw: st.DrawFn, max_nodes: int = 12, vocab: int = 4) -> Tree:
    """A random tree in topological order; empty ones too."""
    size = draw(st.integers(0, max_nodes))
    parents = [-1 if j == 0 else draw(st.integers(0, j - 1)) for j in range(size)]
    return draw(st.lists(st.integers(0, vocab - 1), min_size=size, max_size=size)), parents


def from_tensors(batch: list[Tree]) -> TokenTree:
    """The same tree as `from_lists` makes, with depths and words left to the kernel."""
    made = TokenTree.from_lists(batch)
    return TokenTree(made.tokens, made.parents, made.sizes)


@given(st.lists(trees(), min_size=1, max_size=4))
def test_against_lists(batch: list[Tree]) -> None:
    for tree in (TokenTree.from_lists(batch), from_tensors(batch)):
        check_shape(tree)
        assert tree.batch_size == len(batch)
        assert tree.max_nodes == max(1, *(len(tokens) for tokens, _ in batch), 1)
        for b, (tokens, parents) in enumerate(batch):
            assert int(tree.sizes[b]) == len(tokens)
            assert tree.tokens[b, : len(tokens)].tolist() == tokens
            assert tree.parents[b, : len(tokens)].tolist() == parents
            for j in range(len(tokens)):
                seen = climb(parents, j)
                assert int(tree.depths[b, j]) == len(seen) - 1
                assert tree.ancestors[b, j].nonzero()[:, 0].tolist() == sorted(seen)
            leaves = [j for j in range(len(tokens)) if j not in parents]
            assert tree.paths(b) == [[tokens[i] for i in reversed(climb(parents, j))] for j in leaves]


@given(st.lists(trees(vocab=2), min_size=1, max_size=3), st.integers(0, 11), st.integers(0, 1))
def test_child_is_the_first_with_the_token(batch: list[Tree], node: int, token: int) -> None:
    tree = TokenTree.from_lists(batch)
    found = tree.child(torch.full((len(batch),), node), torch.full((len(batch),), token))
    for b, (tokens, parents) in enumerate(batch):
        fitting = [j for j in range(len(tokens)) if parents[j] == node and tokens[j] == token]
        assert int(found[b]) == (fitting[0] if fitting else -1)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 127, 128, 129, 200])
@pytest.mark.parametrize("shape", ["chain", "star", "random"])
def test_many_words(size: int, shape: str) -> None:
    """Trees that end just before, at and after a word; the sign bit is one of the bits."""
    generator = torch.Generator().manual_seed(size)
    anywhere = [int(torch.randint(0, max(j, 1), (1,), generator=generator)) for j in range(size)]
    parents = [-1 if j == 0 else {"chain": j - 1, "star": 0, "random": anywhere[j]}[shape] for j in range(size)]
    batch = [(list(range(size)), parents), ([7], [-1]), ([], [])]
    for tree in (TokenTree.from_lists(batch), from_tensors(batch)):
        check_shape(tree)
        for j in {0, size // 2, size - 1, min(63, size - 1), min(64, size - 1)}:
            bits = sum(int(w) % 2**64 << (WORD_BITS * i) for i, w in enumerate(tree.words[0, j].tolist()))
            assert bits == sum(1 << i for i in climb(parents, j))
            assert tree.ancestors[0, j].nonzero()[:, 0].tolist() == sorted(climb(parents, j))


@given(st.integers(0, 2**200 - 1))
def test_split_words_round_trip(bits: int) -> None:
    words = split_words(bits, 4)
    assert all(-(2**63) <= w < 2**63 for w in words)
    assert sum((w % 2**64) << (64 * i) for i, w in enumerate(words)) == bits


paths_strategy = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=6)


@given(paths_strategy, st.integers(0, 3))
def test_merging_keeps_every_path_and_nothing_else(paths: list[list[int]], root: int) -> None:
    tree = TokenTree.from_paths([root], [paths])
    prefixes = {tuple(p[:n]) for p in paths for n in range(len(p) + 1)} | {()}
    check_shape(tree)
    assert int(tree.sizes) == len(prefixes)
    nodes = [
        tuple(tree.tokens[0, i].item() for i in reversed(climb(tree.parents[0].tolist(), j)))
        for j in range(tree.max_nodes)
    ]
    assert sorted(nodes) == sorted((root, *p) for p in prefixes)
    leaves = [p for p in prefixes if not any(len(q) > len(p) and q[: len(p)] == p for q in prefixes)]
    assert sorted(map(tuple, tree.paths(0))) == sorted((root, *p) for p in leaves)
    again = TokenTree.from_paths([root], [[p[1:] for p in tree.paths(0)]])
    assert sorted(map(tuple, again.paths(0))) == sorted(map(tuple, tree.paths(0)))


@given(paths_strategy, st.integers(1, 8))
def test_earlier_paths_get_their_nodes_first(paths: list[list[int]], max_nodes: int) -> None:
    tokens, parents = merge_paths(9, paths, max_nodes)
    everything = merge_paths(9, paths)
    assert (tokens, parents) == (everything[0][:max_nodes], everything[1][:max_nodes])


def test_batches_of_paths() -> None:
    tree = TokenTree.from_paths([5, -1, 6], [[[1, 2], [1, 3]], [[1]], []], max_nodes=3)
    assert tree.tokens.tolist() == [[5, 1, 2], [0, 0, 0], [6, 0, 0]]
    assert tree.parents.tolist() == [[-1, 0, 1], [-1, -1, -1], [-1, -1, -1]]
    assert tree.sizes.tolist() == [3, 0, 1]
    assert tree.draft_probs is None
    check_shape(tree)


@pytest.mark.parametrize("nodes", [1, 2, 5, 64, 65])
def test_chain(nodes: int) -> None:
    tokens = torch.arange(1, 3 * nodes + 1).view(3, nodes)
    tokens[1, 0] = -1
    tree = TokenTree.chain(tokens)
    check_shape(tree)
    assert tree.sizes.tolist() == [nodes, 0, nodes]
    assert tree.paths(0) == [tokens[0].tolist()]
    assert tree.paths(1) == []
    assert torch.equal(tree.tokens[2], tokens[2])


def test_roots() -> None:
    tree = TokenTree.roots(torch.tensor([4, -1, 0]))
    check_shape(tree)
    assert tree.sizes.tolist() == [1, 0, 1]
    assert tree.tokens.tolist() == [[4], [0], [0]]
    assert tree.words.flatten().tolist() == [1, 0, 1]


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, -1], [-1, 0, 3], [-2]])
def test_refuses_parents_out_of_order(parents: list[int]) -> None:
    with pytest.raises(ValueError, match=r"parents\[\d\] is -?\d; node 0 must have -1 and every other"):
        TokenTree.from_lists([([0] * len(parents), parents)])
