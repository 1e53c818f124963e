"""Packed rows: what the layers of a target, or of a drafter's head, must know of the rows of one forward pass.

All sequences' rows lie one after the other, `[1, R]`, each with a position, a place in the cache and the places it may
see. Rows of prompts are chains that are committed as they come; rows of trees are nodes that wait for the verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from specdec.attention import Visibility
from specdec.cache import MAX_SPANS, Places, TreeCache
from specdec.kernels.tree_attention import Backend

PREFILL_ROWS = 2048  # rows of one prefill forward: bounds the memory a long prompt takes


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one forward pass.

    Attributes:
        positions: `[R]` int64.
        places: where their KV goes.
        visible: who sees what; the same for every layer.
        shape: (B, N), the nodes they were taken from.
        live: `[R]` int64, which of the `B * N` nodes these are; None for all of them.
    """

    positions: Tensor
    places: Places
    visible: Visibility
    shape: tuple[int, int]
    live: Tensor | None = None

    def pick(self, x: Tensor) -> Tensor:
        """`[B, N, ...]` -> `[R, ...]`."""
        rows = x.flatten(0, 1)
        return rows if self.live is None else rows[self.live]

    def spread(self, rows: Tensor) -> Tensor:
        """`[R, E]` -> `[B, N, E]`, zero where no row was."""
        if self.live is not None:
            batch, nodes = self.shape
            rows = rows.new_zeros(batch * nodes, rows.shape[-1]).index_copy_(0, self.live, rows)
        return rows.view(*self.shape, -1)


def pack_nodes(
    arena: TreeCache,
    depths: Tensor,
    words: Tensor,
    counts: Tensor,
    first: int,
    backend: Backend,
    rows: Sequence[int] | None = None,
) -> Rows | None:
    """Rows of nodes `first ... first + counts` of the scratch places; None if there is no live one.

    Args:
        arena: the cache; its lengths are those of the committed texts.
        depths: `[B, N]` int32, position minus committed length.
        words: `[B, N, W]` int64, visibility over all scratch nodes.
        counts: `[B]` int32, live nodes.
        first: scratch place of node 0.
        backend: of tree attention.
        rows: of every slot, as many as live nodes or more, where the host knows how many it wants; None: on the CPU the
            live nodes, on a GPU, which would have to be asked, all nodes.
    """
    batch, nodes = depths.shape
    device, lengths = arena.device, arena.lengths
    positions = (lengths[:, None] + depths).flatten()  # [B * N]
    places = (lengths[:, None] + _steps(first, nodes, device)).flatten()  # [B * N]
    sizes = torch.where(counts > 0, counts + first, 0) if first else counts
    on_host = list(rows) if rows is not None else counts.tolist() if device.type == "cpu" else [nodes] * batch
    if not any(on_host):
        return None
    spans = _spans(arena, on_host, first)
    if all(count == nodes for count in on_host):
        starts = _row_starts(batch, nodes, device)
        visible = Visibility(arena.block_table, starts, lengths, sizes, words.flatten(0, 1), backend)
        return Rows(positions, arena.places(_slots(batch, nodes, device), places, spans), visible, (batch, nodes))
    live = torch.tensor([b * nodes + j for b, count in enumerate(on_host) for j in range(count)], device=device)  # [R]
    ends = counts if rows is None else torch.tensor(on_host, device=device)
    starts = torch.nn.functional.pad(ends.cumsum(0, dtype=torch.int32), (1, 0))
    visible = Visibility(arena.block_table, starts, lengths, sizes, words.flatten(0, 1)[live], backend)
    return Rows(positions[live], arena.places(live // nodes, places[live], spans), visible, (batch, nodes), live)


def pack_chains(arena: TreeCache, slots: Sequence[int], counts: Sequence[int], backend: Backend) -> Rows:
    """Rows that go on from the committed text of `slots` (ascending), `counts` of each; shape (1, R).

    The caller adds them to the lengths afterwards: `arena.append`.
    """
    device = arena.device
    slot_of_row = torch.tensor(slots, device=device).repeat_interleave(torch.tensor(counts, device=device))  # [R]
    offsets = torch.cat([torch.arange(count, device=device) for count in counts])  # [R]
    positions = arena.lengths[slot_of_row] + offsets
    on_host = [0] * arena.capacity
    for slot, count in zip(slots, counts, strict=True):
        on_host[slot] = count
    sizes = torch.tensor(on_host, dtype=torch.int32, device=device)  # [B]
    starts = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    visible = Visibility(arena.block_table, starts, arena.lengths, sizes, None, backend)
    return Rows(positions, arena.places(slot_of_row, positions), visible, (1, len(positions)))


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward pass reads of some prompts.

    Attributes:
        prompts: which ones, by their numbers, in the order of their slots.
        first: place in its prompt of every prompt's first token here.
        counts: tokens of each here.
        tokens: `[R]` int64, one prompt's after the other's.
        rows: where they go.
    """

    prompts: list[int]
    first: int
    counts: list[int]
    tokens: Tensor
    rows: Rows


def prefill_pieces(
    arena: TreeCache, slots: Sequence[int], prompts: Sequence[Sequence[int]], backend: Backend, first: int = 0
) -> Iterator[Piece]:
    """Prompts behind the committed texts of `slots`, from place `first` on, in pieces of about PREFILL_ROWS rows at
    most. A piece is committed when the next one is asked for.
    """
    step = max(1, PREFILL_ROWS // len(prompts))
    for low in range(first, max(map(len, prompts)), step):
        live = sorted((i for i, prompt in enumerate(prompts) if len(prompt) > low), key=lambda i: slots[i])
        where, parts = [slots[i] for i in live], [prompts[i][low : low + step] for i in live]
        counts = [len(part) for part in parts]
        tokens = torch.tensor([token for part in parts for token in part], device=arena.device)
        yield Piece(live, low, counts, tokens, pack_chains(arena, where, counts, backend))
        arena.append(torch.tensor(where, device=arena.device), torch.tensor(counts, device=arena.device))


def _spans(arena: TreeCache, counts: list[int], first: int) -> list[tuple[int, int, int, int]]:
    """(slot, first place, first row, rows): worth it for few sequences whose lengths the host may read."""
    if arena.device.type != "cpu" or sum(c > 0 for c in counts) > MAX_SPANS:
        return []
    spans, row = [], 0
    for slot, (count, length) in enumerate(zip(counts, arena.lengths.tolist(), strict=True)):
        if count:
            spans.append((slot, length + first, row, count))
        row += count
    return spans


@cache  # a CUDA graph may hold what it gives
def _row_starts(batch: int, nodes: int, device: torch.device) -> Tensor:
    return torch.arange(0, (batch + 1) * nodes, nodes, dtype=torch.int32, device=device)


@cache  # a CUDA graph may hold what it gives
def _slots(batch: int, nodes: int, device: torch.device) -> Tensor:
    return torch.arange(batch, device=device).repeat_interleave(nodes)


@cache  # a CUDA graph may hold what it gives
def _steps(first: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(first, first + count, device=device)
