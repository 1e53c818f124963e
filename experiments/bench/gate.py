"""No number without a right result: every method's output against float64, before it is timed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specdec.experiments.bench.inputs import Inputs
from specdec.kernels.tree_attention import tree_attention_naive


class Expected(NamedTuple):
    """What some of the rows must be, and how far off plain torch is."""

    rows: tuple[slice, ...]
    exact: tuple[Tensor, ...]  # each [N, Hq, D] float64
    allowed: float


def expected(inputs: Inputs) -> Expected:
    """The first, the last and the longest sequence by the maths; allowed is twice plain torch's own error."""
    cell = inputs.cell
    chosen = sorted({0, cell.batch - 1, cell.contexts.index(max(cell.contexts))})
    exact, worst, largest = [], 0.0, 0.0
    for b in chosen:
        one = inputs.only(b)
        exact.append(_naive(one, torch.float64))
        worst = max(worst, float((_naive(one, one.q.dtype) - exact[-1]).abs().max()))
        largest = max(largest, float(exact[-1].abs().max()))
    low = (
        inputs.q.dtype.itemsize == 2
    )  # one rounding of the result is free; in float32, where the order decides, 16 are
    slack = largest * torch.finfo(inputs.q.dtype).eps * (0.5 if low else 16.0)
    return Expected(tuple(slice(b * cell.nodes, (b + 1) * cell.nodes) for b in chosen), tuple(exact), 2 * worst + slack)


def error(out: Tensor, wanted: Expected) -> float:
    """The largest difference; infinite where the result is not a number."""
    worst = 0.0
    for rows, exact in zip(wanted.rows, wanted.exact, strict=True):
        difference = (out[rows] - exact).abs().max()
        worst = max(worst, float(difference.nan_to_num(nan=float("inf"))))
    return worst


def _naive(one: Inputs, dtype: torch.dtype) -> Tensor:
    k, v = (pool.to(dtype) for pool in one.pools[0])
    return tree_attention_naive(
        one.q.to(dtype), k, v, one.block_table, one.row_starts, one.context_lens, one.tree_sizes, one.words,
        scale=one.cell.dim**-0.5,
    )  # fmt: skip
