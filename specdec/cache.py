"""TreeCache: the KV of every slot, with room behind the committed tokens for the nodes of a tree.

A slot with P committed tokens keeps token i at place i; node j of its tree is written at P + j. Committing a path moves
its nodes' KV next to the committed ones. Places lie in pages of an arena that is allocated once: place i of a slot is
place i % page of the page that its block table has at i // page. A dense cache has one page per slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.kv_commit import kv_commit
from specdec.kernels.kv_write import kv_write

ROOM_STEP = 256  # places of a slot on a GPU are a multiple of this: kernels are compiled for a number of places
MAX_SPANS = 4  # up to here a copy per sequence costs less than one indexed write (measured on a CPU)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer's KV: heads and head sizes (value heads may be narrower than key heads)."""

    heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Paging:
    """Pages that slots are given as they need them (see `scheduler`), instead of one for each.

    Attributes:
        pages: how many there are.
        size: places of a page.
    """

    pages: int
    size: int

    @staticmethod
    def first(device: torch.device) -> int:
        """Number of the first page that is given to a slot. On a GPU dead rows run too: page 0, which all entries of a
        block table are at first, takes what they write."""
        return 0 if device.type == "cpu" else 1


class TreeCache:
    """KV arena for `capacity` slots of at least `room` places each (committed tokens and scratch together).

    Attributes:
        room: places of a slot.
        pages, page: how many pages, and places of each: as many as slots, and all places, in a dense cache.
        paging: None for a dense cache.
        lengths: `[B]` int32, committed tokens of every slot. `commit`, `append`, `rewind` and `release` change them,
            and Target when it opens and prefills.
        block_table: `[B, P]` int32, a slot's pages; `tables` is the same on the host.
        keys, values: per layer `[pages, heads, page, head size]`, zero at first (kernels read whole tiles).
        arenas: what these are parts of, `[layers, pages, heads, page, size]`: all layers of a shape move in one
            operation.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        capacity: int,
        room: int,
        device: torch.device,
        paging: Paging | None = None,
    ):
        self.capacity, self.device, self.paging = capacity, device, paging
        self.lengths = torch.zeros(capacity, dtype=torch.int32, device=device)
        if paging is None:
            self.room = room if device.type == "cpu" else -(-room // ROOM_STEP) * ROOM_STEP
            self.page, self.pages = self.room, capacity
            width = 1
            self.tables = [[slot] for slot in range(capacity)]
        else:
            self.page, self.pages = paging.size, paging.pages + Paging.first(device)
            width = -(-room // paging.size)
            self.room = width * paging.size
            self.tables = [[0] * width for _ in range(capacity)]
        self.block_table = torch.tensor(self.tables, dtype=torch.int32, device=device).view(capacity, width)  # [B, P]
        shapes = list(layers)
        self.arenas: list[Tensor] = []
        self.keys = self._allocate([(s.heads, s.key_size, s.dtype) for s in shapes])
        self.values = self._allocate([(s.heads, s.value_size, s.dtype) for s in shapes])

    def _allocate(self, shapes: list[tuple[int, int, torch.dtype]]) -> list[Tensor]:
        views: dict[int, Tensor] = {}
        # On a CPU pages with following numbers lie side by side for every head, so that they are read where they are.
        beside = self.device.type == "cpu" and self.page < self.room
        for shape in dict.fromkeys(shapes):
            layers = [i for i, s in enumerate(shapes) if s == shape]
            heads, size, dtype = shape
            sizes = (heads, self.pages) if beside else (self.pages, heads)
            arena = torch.zeros(len(layers), *sizes, self.page, size, dtype=dtype, device=self.device)
            arena = arena.transpose(1, 2) if beside else arena
            self.arenas.append(arena)
            views |= dict(zip(layers, arena, strict=True))
        return [views[i] for i in range(len(shapes))]

    @property
    def nbytes(self) -> int:
        """Bytes of the arena."""
        return sum(a.nbytes for a in self.arenas)

    def twin(self) -> TreeCache:
        """The same arena, with lengths of its own: what it writes behind them is there for both."""
        made = copy(self)
        made.lengths = self.lengths.clone()
        return made

    def append(self, slots: Tensor, counts: Tensor) -> None:
        """The first `counts` scratch nodes of `slots` are committed where they stand (prefill, chains)."""
        self.lengths.index_add_(0, slots, counts.to(torch.int32))

    def commit(self, path: Tensor, num_accepted: Tensor) -> None:
        """Keep a path of every slot. `path` `[B, D]` scratch nodes, ascending, -1 padded; `num_accepted` `[B]`."""
        kv_commit(self.arenas, self.block_table, self.lengths, path, num_accepted)
        self.lengths += num_accepted.to(torch.int32)

    def rewind(self, lengths: Tensor) -> None:
        """Forget what lies behind the first `lengths` `[B]` int32 tokens of every slot."""
        self.lengths.clamp_(max=lengths)

    def release(self, slot: int) -> None:
        """Forget the sequence in `slot`; with pages, it has none any more."""
        self.lengths[slot] = 0
        if self.paging is not None:
            self.give(slot, [0] * len(self.tables[slot]))

    def give(self, slot: int, pages: Sequence[int], first: int = 0) -> None:
        """`pages` are those of `slot` from number `first` on."""
        self.tables[slot][first : first + len(pages)] = pages
        row = torch.tensor(pages, dtype=torch.int32, device=self.device)
        self.block_table[slot, first : first + len(pages)] = row

    def copy_page(self, source: int, target: int, places: int) -> None:
        """The first `places` of a page, of all layers."""
        for arena in self.arenas:
            arena[:, target, :, :places] = arena[:, source, :, :places]

    def places(self, slots: Tensor, places: Tensor, spans: Iterable[tuple[int, int, int, int]] = ()) -> Places:
        """For `[R]` rows at `places` `[R]` int64 of `slots` `[R]` int64; `spans` the same as (slot, first place, first
        row, rows), where they are known and few."""
        if self.paging is None:
            return Places(slots, places, list(spans))
        cut = in_pages(self.tables, self.page, spans)
        if self.device.type == "cpu" and not cut:
            return Places(*find_pages(self.block_table, self.page, slots, places))
        return Places(slots, places, cut)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the packed rows of one forward pass go.

    Attributes:
        slots, places: `[R]` int64, slot and place of every row; on the CPU, page and place in the page (in a dense
            cache that is the same).
        spans: the same as (page, place in it, first row, rows) where the host knows it and they are few.
    """

    slots: Tensor
    places: Tensor
    spans: Sequence[tuple[int, int, int, int]] = ()

    def write(self, arena: Tensor, rows: Tensor) -> None:
        """Put `rows` `[heads, R, size]` into one layer's `arena` `[pages, heads, page, size]`, on the CPU."""
        if not self.spans:
            arena[self.slots, :, self.places] = rows.transpose(0, 1)
            return
        for page, place, first, count in self.spans:
            arena[page, :, place : place + count] = rows[:, first : first + count]


def in_pages(
    tables: Sequence[Sequence[int]], page: int, spans: Iterable[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """(slot, first place, first row, rows) as (page, place in it, first row, rows), cut at the pages' ends."""
    found = []
    for slot, place, row, count in spans:
        while count:
            number, within = divmod(place, page)
            part = min(count, page - within)
            found.append((tables[slot][number], within, row, part))
            place, row, count = place + part, row + part, count - part
    return found


def find_pages(block_table: Tensor, page: int, slots: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """`[R]` slots and places as `[R]` int64 pages and places in them."""
    return block_table[slots, places // page].long(), places % page


class RowsOnly:
    """What a transformers cache is asked for masks and positions: nothing, since rows carry their own."""

    is_compileable = False

    def get_seq_length(self, layer: int = 0) -> int:
        """Nothing may be derived from it: rows carry their own positions."""
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        """See `get_seq_length`."""
        return 0

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        """Key length and offset of a mask."""
        return query_length, 0


class CacheView(RowsOnly):
    """The cache as a transformers model sees it during one forward pass.

    `update` stores the new rows and hands the whole arena to the attention function, which knows the lengths. It
    answers what masks and positions are made from, though our attention needs no mask and rows carry their positions.
    """

    def __init__(self, cache: TreeCache, places: Places):
        self._cache = cache
        self._places = places
        self.is_sliding = [False] * len(cache.keys)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """`key`, `value` `[1, heads, R, size]` of the packed rows; returns this layer's pages."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        live = len(self._places.slots)  # rows behind these are padding
        key, value = key[:, :, :live], value[:, :, :live]
        if key.device.type != "cpu":
            rows = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [R, heads, size]
            kv_write(*rows, keys, values, self._cache.block_table, self._places.slots, self._places.places)
            return keys, values
        self._places.write(keys, key[0])
        self._places.write(values, value[0])
        return keys, values

    def __len__(self) -> int:
        return len(self._cache.keys)
