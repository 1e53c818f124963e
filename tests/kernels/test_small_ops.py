"""Ancestor words, acceptance, KV moves and KV writes: every backend against a plain loop, bit for bit."""

import importlib.util
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.kernels.accept import accept
from specdec.kernels.ancestor_words import ancestor_words
from specdec.kernels.kv_commit import kv_commit
from specdec.kernels.kv_write import kv_write

from .cases import DEVICE, ancestors, pack_bits, random_parents

TRITON = ["triton"] if importlib.util.find_spec("triton") else []
Trees = tuple[torch.Tensor, torch.Tensor]


def make_trees(sizes: list[int], nodes: int, seed: int = 0) -> Trees:
    """parents `[B, nodes]`, its padding full of numbers that must not be followed, and sizes `[B]`."""
    generator = torch.Generator().manual_seed(seed)
    parents = torch.full((len(sizes), nodes), 2**31 - 1, dtype=torch.int32)
    for b, size in enumerate(sizes):
        parents[b, :size] = torch.tensor(random_parents(size, generator), dtype=torch.int32)
    return parents.to(DEVICE), torch.tensor(sizes, dtype=torch.int32, device=DEVICE)


def expected_words(parents: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, nodes = parents.shape
    words = torch.zeros(batch, nodes, -(-nodes // 64), dtype=torch.int64)
    depths = torch.zeros(batch, nodes, dtype=torch.int32)
    for b, size in enumerate(sizes.tolist()):
        seen = ancestors(parents[b, :size].tolist())
        words[b, :size] = pack_bits(seen, words.shape[2])
        depths[b, :size] = seen.sum(1).int() - 1
    return words.to(DEVICE), depths.to(DEVICE)


SIZES = [([1], 1), ([5, 0, 3], 5), ([63, 64, 65], 65), ([7], 16), ([130, 1], 200)]


@pytest.mark.parametrize("backend", ["naive", "host", *TRITON])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_ancestor_words(backend: Any, sizes: tuple[list[int], int]) -> None:
    parents, live = make_trees(*sizes)
    words, depths = ancestor_words(parents, live, backend=backend)
    wanted_words, wanted_depths = expected_words(parents, live)
    assert torch.equal(words, wanted_words)
    assert torch.equal(depths, wanted_depths)
    assert (words.dtype, depths.dtype) == (torch.int64, torch.int32)


@pytest.mark.parametrize("backend", ["auto", "naive", "host", *TRITON])
def test_ancestor_words_of_a_chain_and_of_a_forest(backend: Any) -> None:
    chain = torch.arange(-1, 69, dtype=torch.int32, device=DEVICE)[None]  # [1, 70]
    words, depths = ancestor_words(chain, torch.tensor([70], device=DEVICE), backend=backend)
    assert depths[0].tolist() == list(range(70))
    assert words[0, 69].tolist() == [-1, 63]
    forest = torch.tensor([[-1, -1, 1, 0]], dtype=torch.int32, device=DEVICE)
    words, depths = ancestor_words(forest, torch.tensor([4], device=DEVICE), backend=backend)
    assert words[0, :, 0].tolist() == [1, 2, 6, 9]
    assert depths[0].tolist() == [0, 0, 1, 1]


def walk(tokens: list[int], parents: list[int], size: int, targets: list[int]) -> list[int]:
    """The accepted path, found by trying every node's way down: the deepest, then the lowest."""
    best: list[int] = []
    for node in range(size):
        way = [node]
        while parents[way[0]] >= 0:
            way.insert(0, parents[way[0]])
        right = all(targets[a] == tokens[b] for a, b in pairwise(way))
        if way[0] == 0 and right and len(way) > len(best):
            best = way
    return best


def check_accept(backend: Any, sizes: list[int], nodes: int, seed: int) -> None:
    parents, live = make_trees(sizes, nodes, seed)
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = (torch.randint(0, 2, (len(sizes), nodes), generator=generator).to(DEVICE) for _ in range(2))
    words, _ = expected_words(parents, live)
    path, count, next_token = accept(tokens, parents, live, words, targets, backend=backend)
    assert (path.dtype, count.dtype, next_token.dtype) == (torch.int64, torch.int32, torch.int64)
    assert path.shape == tokens.shape
    for b, size in enumerate(sizes):
        way = walk(tokens[b].tolist(), parents[b].tolist(), size, targets[b].tolist())
        assert path[b].tolist() == way + [-1] * (nodes - len(way))
        assert int(count[b]) == len(way)
        assert int(next_token[b]) == int(targets[b, way[-1] if way else 0])


@pytest.mark.parametrize("backend", ["auto", "naive", "host", *TRITON])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_accept(backend: Any, sizes: tuple[list[int], int]) -> None:
    for seed in range(4):
        check_accept(backend, *sizes, seed)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 10_000))
@settings(max_examples=30)
def test_accept_on_random_trees(sizes: list[int], seed: int) -> None:
    for backend in ("naive", "host", *TRITON):
        check_accept(backend, sizes, max(*sizes, 1), seed)


@pytest.mark.parametrize("backend", ["naive", "host", *TRITON])
def test_accept_never_takes_a_second_root(backend: Any) -> None:
    parents = torch.tensor([[-1, -1, 1, 0]], dtype=torch.int32, device=DEVICE)
    same = torch.zeros(1, 4, dtype=torch.int64, device=DEVICE)
    words = torch.tensor([[[1], [2], [6], [9]]], device=DEVICE)
    path, count, _ = accept(same, parents, torch.tensor([4], device=DEVICE), words, same, backend=backend)
    assert path.tolist() == [[0, 3, -1, -1]]
    assert count.tolist() == [2]


@pytest.mark.parametrize("backend", ["auto", *TRITON])
@pytest.mark.parametrize("page", [1, 16, 128])
def test_kv_commit(backend: Any, page: int) -> None:
    generator = torch.Generator().manual_seed(page)
    lengths = torch.tensor([13, 0, 40], dtype=torch.int32)
    paths = [[0, 2, 3, 7, 12], [0], [0, 1, *range(3, 40)]]  # the last one moves more than one block of rows
    depth, places = 40, 80
    pages = -(-places // page)
    order = torch.randperm(3 * pages, generator=generator)
    table = order.view(3, pages).int()
    arenas = [torch.randn(2, 3 * pages, 3, page, size, generator=generator) for size in (16, 12)]
    path = torch.full((3, depth), -1)
    for b, way in enumerate(paths):
        path[b, : len(way)] = torch.tensor(way)
    count = torch.tensor([len(way) for way in paths], dtype=torch.int32)
    count[1] = 0
    wanted = [arena.clone() for arena in arenas]
    for b, way in enumerate(paths):
        for i, node in enumerate(way[: int(count[b])]):
            source, target = int(lengths[b]) + node, int(lengths[b]) + i
            for new, old in zip(wanted, arenas, strict=True):
                row = old[:, table[b, source // page], :, source % page]
                new[:, table[b, target // page], :, target % page] = row
    moved = [arena.to(DEVICE) for arena in arenas]
    table, lengths, path, count = (x.to(DEVICE) for x in (table, lengths, path, count))
    kv_commit(moved, table, lengths, path, count, backend=backend)
    for arena, expected in zip(moved, wanted, strict=True):
        assert torch.equal(arena.cpu(), expected)


@pytest.mark.parametrize("backend", ["auto", *TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_kv_write(backend: Any, dtype: torch.dtype) -> None:
    keys = torch.randn(4, 3, 16, device=DEVICE)
    values = torch.randn(4, 12, 3, device=DEVICE).transpose(1, 2).contiguous()
    pools = [torch.zeros(5, 3, 8, size, device=DEVICE).to(dtype) for size in (16, 12)]
    table = torch.tensor([[3, 1], [4, -1]], dtype=torch.int32, device=DEVICE)
    sequences = torch.tensor([0, -1, 1, 0], dtype=torch.int32, device=DEVICE)
    slots = torch.tensor([9, 5, 0, 7], dtype=torch.int32, device=DEVICE)
    kv_write(keys, values, pools[0], pools[1], table, sequences, slots, backend=backend)
    for rows, pool in zip((keys, values), pools, strict=True):
        wanted = torch.zeros(pool.shape, device=DEVICE)
        for row, page, place in ((0, 1, 1), (2, 4, 0), (3, 3, 7)):
            wanted[page, :, place] = rows[row].to(dtype).float()
        assert torch.equal(pool.float(), wanted)


def test_bad_arguments_are_named() -> None:
    parents, sizes = make_trees([3], 3)
    with pytest.raises(ValueError, match=r"sizes \[B\]"):
        ancestor_words(parents, sizes[:0])
    with pytest.raises(ValueError, match="parents must be int32"):
        ancestor_words(parents.float(), sizes)
    with pytest.raises(ValueError, match="backend must be"):
        ancestor_words(parents, sizes, backend="cuda")  # type: ignore[arg-type]
    words, _ = ancestor_words(parents, sizes)
    tokens = parents.long()
    with pytest.raises(ValueError, match="targets must begin with"):
        accept(tokens, parents, sizes, words, tokens[:, :2])
    with pytest.raises(ValueError, match="N > 0"):
        accept(tokens[:, :0], parents, sizes, words, tokens)
    with pytest.raises(ValueError, match=r"arenas\[0\] must be"):
        kv_commit([torch.zeros(2, 2, 2, 2)], parents, sizes, tokens, sizes)
    pool = torch.zeros(2, 3, 8, 16)
    with pytest.raises(ValueError, match="keys must be"):
        kv_write(torch.zeros(4, 2, 16), torch.zeros(4, 3, 16), pool, pool, parents, sizes, sizes)
