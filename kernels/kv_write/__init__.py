"""Write the keys and values of a forward pass's rows into their slots of the pools."""

from typing import Literal

from torch import Tensor

from specdec.kernels.common.dispatch import prefers_triton, require_triton
from specdec.kernels.kv_write.naive import kv_write_naive


def kv_write(
    keys: Tensor,
    values: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    block_table: Tensor,
    sequences: Tensor,
    slots: Tensor,
    backend: Literal["auto", "naive", "triton"] = "auto",
) -> None:
    """Row r goes to slot `slots[r]` of sequence `sequences[r]`.

    `sequences` and `slots` are the same for every layer of a step. No two rows may have the same slot.

    Args:
        keys, values: `[R, heads, D]` and `[R, heads, Dv]`, contiguous in the last dimension.
        k_pool, v_pool: `[pages, heads, page, D]` and `[pages, heads, page, Dv]`; changed in place, their
            dtype is kept.
        block_table: `[B, P]` int32, pages of every sequence.
        sequences: `[R]` int32 or int64; -1 for a padding row, which is not written.
        slots: `[R]` int32 or int64.
        backend: "auto" is triton on a GPU, naive elsewhere.

    Raises:
        ValueError: shapes do not fit, or the backend is unknown.
    """
    for name, rows, pool in (("keys", keys, k_pool), ("values", values, v_pool)):
        if rows.dim() != 3 or pool.dim() != 4 or rows.shape[1:] != (pool.shape[1], pool.shape[3]):
            raise ValueError(
                f"{name} must be [R, heads, size] and its pool [pages, heads, page, size], got {list(rows.shape)} and "
                f"{list(pool.shape)}"
            )
        if rows.stride(2) != 1 or pool.stride(3) != 1:
            raise ValueError(f"{name} and its pool must be contiguous in size, got {rows.stride()} and {pool.stride()}")
    rows_shape = keys.shape[:1]
    if values.shape[:1] != rows_shape or sequences.shape != rows_shape or slots.shape != rows_shape:
        raise ValueError(
            f"values, sequences and slots must have keys' {keys.shape[0]} rows, got {values.shape[0]}, "
            f"{list(sequences.shape)} and {list(slots.shape)}"
        )
    if k_pool.shape[2] != v_pool.shape[2]:
        raise ValueError(f"v_pool must have k_pool's page size {k_pool.shape[2]}, got {v_pool.shape[2]}")
    if backend == "auto":
        backend = "triton" if prefers_triton(keys.device) else "naive"
    if backend == "naive":
        kv_write_naive(keys, values, k_pool, v_pool, block_table, sequences, slots)
    elif backend == "triton":
        require_triton()
        from specdec.kernels.kv_write.fused import kv_write_fused

        kv_write_fused(keys, values, k_pool, v_pool, block_table, sequences, slots)
    else:
        raise ValueError(f"backend must be auto, naive or triton, got {backend!r}")
