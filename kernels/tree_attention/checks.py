"""Argument checks of tree attention. Shapes and dtypes always; values only where they lie on the host already."""

from itertools import pairwise

import torch
from torch import Tensor


def check_shapes(
    q: Tensor,  # [R, Hq, D]
    k_pool: Tensor,  # [pages, Hkv, page, D]
    v_pool: Tensor,  # [pages, Hkv, page, Dv]
    block_table: Tensor,  # [B, P]
    row_starts: Tensor,  # [B + 1]
    context_lens: Tensor,  # [B]
    tree_sizes: Tensor,  # [B]
    words: Tensor | None,  # [R, W]
    window: int,
    softcap: float,
    sinks: Tensor | None,  # [Hq]
) -> None:
    """Refuse shapes, dtypes and devices that do not fit together.

    Raises:
        ValueError: naming the argument, what it is and what is expected.
    """
    for name, tensor, dims in (
        ("q", q, 3),
        ("k_pool", k_pool, 4),
        ("v_pool", v_pool, 4),
        ("block_table", block_table, 2),
    ):
        if tensor.dim() != dims:
            raise ValueError(f"{name} must have {dims} dimensions, got shape {list(tensor.shape)}")
    heads, page, dim = k_pool.shape[1:]
    if k_pool.shape[:3] != v_pool.shape[:3]:
        expected, got = list(k_pool.shape[:3]), list(v_pool.shape[:3])
        raise ValueError(f"v_pool must have k_pool's pages, heads and page size {expected}, got {got}")
    if q.shape[2] != dim:
        raise ValueError(f"q must have k_pool's head size {dim}, got {q.shape[2]}")
    if heads == 0 or q.shape[1] % heads:
        raise ValueError(f"q must have a multiple of k_pool's {heads} heads, got {q.shape[1]}")
    if not q.is_floating_point():
        raise ValueError(f"q must be floating point, got {q.dtype}")
    if k_pool.dtype != v_pool.dtype:
        raise ValueError(f"v_pool must have k_pool's dtype {k_pool.dtype}, got {v_pool.dtype}")
    if k_pool.dtype != q.dtype and k_pool.element_size() > 1:
        raise ValueError(f"k_pool must have q's dtype {q.dtype} or an 8-bit float one, got {k_pool.dtype}")
    batch = block_table.shape[0]
    for name, tensor, length in (
        ("row_starts", row_starts, batch + 1),
        ("context_lens", context_lens, batch),
        ("tree_sizes", tree_sizes, batch),
    ):
        if tensor.shape != (length,):
            raise ValueError(f"{name} must have shape [{length}] for {batch} sequences, got {list(tensor.shape)}")
    for name, tensor in (
        ("block_table", block_table),
        ("row_starts", row_starts),
        ("context_lens", context_lens),
        ("tree_sizes", tree_sizes),
    ):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be int32 (or int64), got {tensor.dtype}")
    if words is not None:
        if words.dim() != 2 or words.shape[0] != q.shape[0]:
            raise ValueError(f"words must have shape [{q.shape[0]}, W], one row a query row, got {list(words.shape)}")
        if words.dtype != torch.int64:
            raise ValueError(f"words must be int64, got {words.dtype}")
    if sinks is not None and sinks.shape != (q.shape[1],):
        raise ValueError(f"sinks must have shape [{q.shape[1]}], one a query head, got {list(sinks.shape)}")
    if window < 0:
        raise ValueError(f"window must be 0 (none) or positive, got {window}")
    if softcap < 0:
        raise ValueError(f"softcap must be 0 (none) or positive, got {softcap}")
    for name, other in (
        ("k_pool", k_pool),
        ("v_pool", v_pool),
        ("block_table", block_table),
        ("row_starts", row_starts),
        ("context_lens", context_lens),
        ("tree_sizes", tree_sizes),
        ("words", words),
        ("sinks", sinks),
    ):
        if other is not None and other.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {other.device}")


def check_values(
    rows: int,
    pages: int,
    page: int,
    block_table: Tensor,  # [B, P]
    row_starts: Tensor,  # [B + 1]
    context_lens: Tensor,  # [B]
    tree_sizes: Tensor,  # [B]
    words: Tensor | None,  # [R, W]
) -> None:
    """Refuse lengths, tables and words that point outside of what is there. Reads the tensors: for the host only.

    Raises:
        ValueError: naming the sequence, what it asks for and what there is.
    """
    starts: list[int] = row_starts.tolist()
    table: list[list[int]] = block_table.tolist()
    if starts[0] < 0 or starts[-1] > rows or any(a > b for a, b in pairwise(starts)):
        raise ValueError(f"row_starts must rise from 0 to at most q's {rows} rows, got {starts}")
    width = None if words is None else words.shape[1] * 64
    for b, (context, size) in enumerate(zip(context_lens.tolist(), tree_sizes.tolist(), strict=True)):
        if context < 0 or size < 0:
            raise ValueError(f"context_lens[{b}] and tree_sizes[{b}] must not be negative, got {context} and {size}")
        if width is not None and size > width:
            raise ValueError(f"words hold {width} nodes a row, but tree_sizes[{b}] is {size}")
        used = table[b][: -(-(context + size) // page)]
        if len(used) * page < context + size:
            raise ValueError(
                f"block_table[{b}] has {len(used)} pages of {page} slots, sequence {b} needs {context + size} slots"
            )
        hole = next((i for i, index in enumerate(used) if not 0 <= index < pages), None)
        if hole is not None:
            raise ValueError(
                f"block_table[{b}, {hole}] is {used[hole]}, a hole below slot {context + size} that sequence {b} uses; "
                f"pages are 0 to {pages - 1}"
            )
        if words is not None:
            _check_bits(words[starts[b] : starts[b + 1]], size, b)


def _check_bits(words: Tensor, size: int, sequence: int) -> None:
    """No bit at or past `size` may be set. words `[rows, W]`."""
    whole, rest = divmod(size, 64)
    extra = words[:, whole + (rest > 0) :].any()
    if rest:
        extra = extra | ((words[:, whole] >> rest) & ((1 << (64 - rest)) - 1)).any()
    if bool(extra):
        raise ValueError(f"words of sequence {sequence} have bits at or past its {size} nodes; clear them")
