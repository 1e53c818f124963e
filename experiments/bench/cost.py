"""What a cell has to move and to compute, by arithmetic."""

from __future__ import annotations

from typing import NamedTuple

import torch

from specdec.experiments.bench.grid import Cell


class Cost(NamedTuple):
    """Bytes read and written, and floating-point operations, of one layer."""

    bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


def cost(cell: Cell) -> Cost:
    """Every key and value once, queries and results once, words once; the multiplications of both products."""
    size, kv_size = (getattr(torch, name).itemsize for name in (cell.dtype, cell.kv_dtype))
    rows = cell.batch * cell.nodes
    kv = cell.slots * cell.kv_heads * cell.dim * 2 * kv_size
    words = 0 if cell.chain else rows * -(-cell.nodes // 64) * 8
    seen = sum(cell.nodes * (context + cell.nodes) for context in cell.contexts)
    return Cost(kv + 2 * rows * cell.heads * cell.dim * size + words, 4 * seen * cell.heads * cell.dim)
