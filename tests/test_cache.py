"""The cache's room, and its pages: whatever their size, the bits of the dense cache."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import PreTrainedModel

from specdec.cache import ROOM_STEP, LayerShape, Paging, TreeCache
from specdec.chunks import Chunk
from specdec.core import TargetOutput, Verdict
from specdec.target import Target
from specdec.tree.riders import Riders
from specdec.tree.token_tree import TokenTree

from .models import VOCAB, make_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(("device", "rooms"), [("cpu", (0, 1, 256, 257)), ("meta", (0, ROOM_STEP, ROOM_STEP, 512))])
def test_kernels_on_a_device_see_few_numbers_of_places(device: str, rooms: tuple[int, ...]) -> None:
    for asked, room in zip((0, 1, 256, 257), rooms, strict=True):
        cache = TreeCache([LayerShape(2, 4, 3, torch.float32)] * 3, 5, asked, torch.device(device))
        assert cache.room == room
        assert cache.keys[2].shape == (5, 2, room, 4)
        assert cache.values[0].shape == (5, 2, room, 3)


def test_pages_and_tables() -> None:
    cache = TreeCache([LayerShape(2, 4, 3, torch.float32)] * 3, 2, 10, CPU, Paging(7, 4))
    assert (cache.room, cache.page, cache.pages) == (12, 4, 7)
    assert cache.keys[2].shape == (7, 2, 4, 4)
    cache.give(1, [5, 2])
    cache.give(1, [6], 2)
    assert cache.block_table.tolist() == cache.tables == [[0, 0, 0], [5, 2, 6]]
    cache.keys[0][5] = 1.0
    cache.copy_page(5, 3, 2)
    assert cache.keys[0][3, :, :2].eq(1).all()
    assert cache.keys[0][3, :, 2:].eq(0).all()
    twin = cache.twin()
    cache.release(1)
    assert twin.block_table.tolist() == twin.tables == [[0, 0, 0], [0, 0, 0]]


def test_on_a_device_no_slot_has_the_page_of_dead_rows() -> None:
    cache = TreeCache([LayerShape(2, 4, 3, torch.float32)], 2, 10, torch.device("meta"), Paging(7, 4))
    assert cache.pages == 8
    assert Paging.first(torch.device("meta")) == 1


class Pair:
    """A dense target and a paged one that do the same. Pages are given in a random order, free ones are full of NaN."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, page: int, slots: int = 3, room: int = 60, backend: str = "packed"):
        self.dense, self.paged = (Target(model, backend=backend, hidden_layers=(0, -1)) for _ in range(2))
        self.dense.open(slots, room, 8)
        width = -(-(room + 16) // page)
        self.paged.open(slots, room, 8, Paging(slots * width, page))
        for arena in self.paged.cache.arenas:
            arena.fill_(float("nan"))
        pages = list(range(slots * width))
        random.Random(page).shuffle(pages)
        for slot in range(slots):
            self.paged.cache.give(slot, pages[slot * width : (slot + 1) * width])

    def verify(self, tree: TokenTree) -> TargetOutput:
        outputs = [target.verify(tree) for target in (self.dense, self.paged)]
        same(*outputs)
        return outputs[0]

    def commit(self, verdict: Verdict) -> None:
        for target in (self.dense, self.paged):
            target.commit(verdict)


def same(one: TargetOutput, other: TargetOutput) -> None:
    assert torch.equal(one.logits, other.logits)
    assert one.logits.isfinite().all()
    assert one.hidden.keys() == other.hidden.keys()
    for layer in one.hidden:
        assert torch.equal(one.hidden[layer], other.hidden[layer])
    assert (one.riders is None) == (other.riders is None)
    if one.riders is not None and other.riders is not None:
        assert torch.equal(one.riders, other.riders)


def random_tree(chance: random.Random, sizes: list[int], riders: int = 0) -> TokenTree:
    trees = [
        ([chance.randrange(VOCAB) for _ in range(n)], [-1, *(chance.randrange(j) for j in range(1, n))][:n])
        for n in sizes
    ]
    tree = TokenTree.from_lists(trees)
    if not riders:
        return tree
    beside = Riders(torch.randint(VOCAB, (len(sizes), riders)), torch.arange(-1, riders - 1))
    return TokenTree(tree.tokens, tree.parents, tree.sizes, riders=beside)


def random_verdict(chance: random.Random, tree: TokenTree) -> Verdict:
    path = torch.full((tree.batch_size, tree.max_nodes), -1)
    for slot in range(tree.batch_size):
        nodes = [0] if tree.sizes[slot] else []
        while nodes and chance.random() < 0.8:
            below = [j for j, parent in enumerate(tree.parents[slot].tolist()) if parent == nodes[-1]]
            if not below:
                break
            nodes.append(chance.choice(below))
        path[slot, : len(nodes)] = torch.tensor(nodes, dtype=torch.int64)
    return Verdict(path, (path >= 0).sum(-1, dtype=torch.int32), torch.zeros(tree.batch_size, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("page", [1, 3, 16, 100])
@torch.inference_mode()
def test_pages_give_the_bits_of_the_dense_cache(page: int, dtype: torch.dtype) -> None:
    """Ragged prompts, trees of all sizes and none, paths that move across pages; few slots and many."""
    chance = random.Random(page)
    for slots in (3, 6):
        pair = Pair(make_model("llama", dtype=dtype), page, slots)
        prompts = [[chance.randrange(VOCAB) for _ in range(n)] for n in (13, 1, 7, 5, 2, 9)[:slots]]
        which = list(range(slots))
        same(pair.dense.prefill(which, prompts), pair.paged.prefill(which, prompts))
        for step in range(5):
            tree = random_tree(chance, [chance.randrange(9) for _ in range(slots)], riders=3 * (step == 2))
            pair.verify(tree)
            pair.commit(random_verdict(chance, tree))
        assert torch.equal(pair.dense.lengths, pair.paged.lengths)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@torch.inference_mode()
def test_pages_with_other_backends(backend: str) -> None:
    chance = random.Random(1)
    pair = Pair(make_model("mistral", dtype=torch.float64, sliding_window=6), 5, backend=backend)
    prompts = [[3, 4, 5, 6, 7, 8, 9], [1], [2, 2, 2]]
    for target in (pair.dense, pair.paged):
        for arena in target.cache.arenas:
            arena.zero_()  # these multiply what they do not see by zero
        target.prefill([0, 1, 2], prompts)
    for _ in range(3):
        tree = random_tree(chance, [5, 0, 8])
        outputs = [target.verify(tree) for target in (pair.dense, pair.paged)]
        assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-12)
        pair.commit(random_verdict(chance, tree))


# Chunks of prompts beside trees


def read_beside(target: Target, exact_rows: list[int], tree: TokenTree) -> tuple[TargetOutput, list[Chunk]]:
    """Slots 0 and 2 have texts and trees, slots 1 and 3 are read in pieces at the same time."""
    long = [i * 7 % VOCAB for i in range(1, sum(exact_rows) + 1)]
    target.open(4, 90, 8)
    target.prefill([0, 2], [[5, 6, 7], [8] * 11])
    chunks, at = [], 0
    for number, count in enumerate(exact_rows):
        last = number == len(exact_rows) - 1
        now = [Chunk(3, long[at : at + count], last), *([Chunk(1, [4, 4, 9], False)] if number == 0 else [])]
        output = target.verify(tree, now)
        target.append(now)
        chunks += now[:1]
        at += count
    return output, chunks


@pytest.mark.parametrize("pieces", [[30], [1, 29], [9, 9, 9, 3], [1] * 5])
@pytest.mark.parametrize("exact", [False, True])
@torch.inference_mode()
def test_chunks_beside_trees_are_what_both_are_alone(pieces: list[int], exact: bool) -> None:
    """With exact=True bit by bit, in float32."""
    dtype = torch.float32 if exact else torch.float64
    target = Target(make_model("llama", dtype=dtype), hidden_layers=(0, -1), exact=exact)
    tree = random_tree(random.Random(3), [6, 0, 1, 0], riders=2)
    together, chunks = read_beside(target, pieces, tree)
    assert target.lengths.tolist() == [3, 3, 11, sum(pieces)]
    read = torch.cat([chunk.hidden[0] for chunk in chunks])
    after = random_tree(random.Random(4), [2, 3, 0, 5])
    later = target.verify(after)

    target.open(4, 90, 8)
    prompts = [[5, 6, 7], [4, 4, 9], [8] * 11, [i * 7 % VOCAB for i in range(1, sum(pieces) + 1)]]
    alone = target.prefill([0, 1, 2, 3], prompts)
    expected, expected_later = target.verify(tree), target.verify(after)

    def close(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
        assert one is not None
        assert other is not None
        return torch.equal(one, other) if exact else torch.allclose(one, other, atol=1e-11)

    assert close(
        together.logits[[0, 2]][tree.ancestors[[0, 2]].any(-1)], expected.logits[[0, 2]][tree.ancestors[[0, 2]].any(-1)]
    )
    assert together.riders is not None
    assert close(together.riders[[0, 2]], expected.riders[[0, 2]] if expected.riders is not None else None)
    assert close(together.hidden[-1][0], expected.hidden[-1][0])
    assert close(chunks[-1].logits, alone.logits[3, 0])
    assert close(read, alone.hidden[0][3, : sum(pieces)])
    assert all(chunk.logits is None for chunk in chunks[:-1])
    assert close(later.logits, expected_later.logits)


@torch.inference_mode()
def test_chunks_alone() -> None:
    target = Target(make_model("llama", dtype=torch.float64))
    target.open(2, 20, 2)
    nobody = TokenTree.roots(torch.tensor([-1, -1]))
    first, second = Chunk(1, [5, 6, 7], False), Chunk(1, [8, 9], True)
    for chunk in (first, second):
        target.verify(nobody, [chunk])
        target.append([chunk])
    target.open(2, 20, 2)
    alone = target.prefill([1], [[5, 6, 7, 8, 9]])
    assert second.logits is not None
    assert first.logits is None
    assert torch.allclose(second.logits, alone.logits[0, 0], atol=1e-12)
