"""Queries, trees and rotating pools of a cell. No pool is read twice before the others have left the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specdec.experiments.bench.grid import Cell
from specdec.kernels.ancestor_words import ancestor_words
from specdec.kernels.tree_attention import Plan, make_plan

ROOM_MULTIPLE = 256  # slots of a dense page; FlashAttention reads such pages in place
CPU_CACHE = 32 << 20


@dataclass(frozen=True)
class Inputs:
    """Arguments of `tree_attention` over a dense cache, and the same cache again at other addresses."""

    cell: Cell
    q: Tensor  # [R, Hq, D]
    pools: tuple[tuple[Tensor, Tensor], ...]  # keys and values, each [B, Hkv, room, D]
    block_table: Tensor  # [B, 1]
    row_starts: Tensor  # [B + 1]
    context_lens: Tensor  # [B]
    tree_sizes: Tensor  # [B]
    parents: Tensor  # [B, N] int32
    words: Tensor | None  # [R, W]

    def plan(self) -> Plan:
        """Host lengths, as the host backends want them."""
        return make_plan(self.block_table, self.row_starts, self.context_lens, self.tree_sizes, self.words)

    def only(self, sequence: int) -> Inputs:
        """One of the sequences, over the first pools, cut to its length."""
        first, end = self.row_starts[sequence : sequence + 2].tolist()
        room = int(self.context_lens[sequence] + self.tree_sizes[sequence])
        k, v = (pool[sequence : sequence + 1, :, :room] for pool in self.pools[0])
        pick = slice(sequence, sequence + 1)
        starts = torch.tensor([0, end - first], dtype=torch.int32, device=self.q.device)
        return replace(
            self, q=self.q[first:end], pools=((k, v),), block_table=self.block_table[:1], row_starts=starts,
            context_lens=self.context_lens[pick], tree_sizes=self.tree_sizes[pick], parents=self.parents[pick],
            words=None if self.words is None else self.words[first:end],
        )  # fmt: skip


class Pools:
    """The pools of the last cell, kept while the next one has the same shapes."""

    def __init__(self, device: torch.device):
        self.device = device
        self._key: tuple[object, ...] = ()
        self._pools: tuple[tuple[Tensor, Tensor], ...] = ()

    def get(self, cell: Cell) -> tuple[tuple[Tensor, Tensor], ...]:
        """Enough pools, each as large as the cell's longest sequence times its batch."""
        room = -(-(max(cell.contexts) + 128) // ROOM_MULTIPLE) * ROOM_MULTIPLE
        key = (cell.batch, cell.kv_heads, room, cell.dim, cell.kv_dtype, cell.contexts)
        if key != self._key:
            self._pools = ()  # the old ones go first
            self._key, self._pools = key, self._make(cell, room)
        return self._pools

    def _make(self, cell: Cell, room: int) -> tuple[tuple[Tensor, Tensor], ...]:
        shape = (cell.batch, cell.kv_heads, room, cell.dim)
        dtype = getattr(torch, cell.kv_dtype)
        wide = torch.float32 if dtype.itemsize == 4 else torch.bfloat16
        generator = torch.Generator(self.device).manual_seed(0)
        first = tuple(
            torch.randn(shape, generator=generator, device=self.device, dtype=wide).to(dtype) for _ in range(2)
        )
        live = sum(cell.contexts) * cell.kv_heads * cell.dim * 2 * dtype.itemsize  # what a call reads
        pools = [first]
        for _ in range(pool_count(live, self.device) - 1):
            pools.append(tuple(pool.clone() for pool in first))
        return tuple((k, v) for k, v in pools)


def pool_count(live: int, device: torch.device) -> int:
    """How many pools of `live` bytes keep the cache cold: four times its size, and at least 4 (on the CPU 2)."""
    if device.type != "cuda":
        return max(2, min(8, -(-4 * CPU_CACHE // live)))
    return max(4, -(-4 * torch.cuda.get_device_properties(device).L2_cache_size // live))


def make_inputs(cell: Cell, pools: Pools) -> Inputs:
    """Random queries and random trees (every node's parent is any earlier node), the same for the same cell."""
    device, generator = pools.device, torch.Generator().manual_seed(cell.nodes)
    batch, nodes = cell.batch, cell.nodes
    parents = (torch.rand(batch, nodes, generator=generator) * torch.arange(nodes)).int()
    parents[:, 0] = -1
    sizes = torch.full((batch,), nodes, dtype=torch.int32)
    words, _ = ancestor_words(parents, sizes, backend="naive")  # [B, N, W]
    q = torch.randn(batch * nodes, cell.heads, cell.dim, generator=generator).to(getattr(torch, cell.dtype))
    return Inputs(
        cell, q.to(device), pools.get(cell), torch.arange(batch, dtype=torch.int32, device=device)[:, None],
        torch.arange(0, batch * nodes + 1, nodes, dtype=torch.int32, device=device),
        torch.tensor(cell.contexts, dtype=torch.int32, device=device), sizes.to(device), parents.to(device),
        None if cell.chain else words.flatten(0, 1).to(device),
    )  # fmt: skip
