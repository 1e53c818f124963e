"""Move the KV of accepted paths next to the committed tokens: all layers, in place."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from specdec.kernels.common.dispatch import prefers_triton, require_triton
from specdec.kernels.kv_commit.naive import kv_commit_naive


def kv_commit(
    arenas: Sequence[Tensor],
    block_table: Tensor,
    lengths: Tensor,
    path: Tensor,
    num_accepted: Tensor,
    backend: Literal["auto", "naive", "triton"] = "auto",
) -> None:
    """Slot `lengths + path[i]` of every layer and head moves to slot `lengths + i`, for i below `num_accepted`.

    This operation does not modify lengths.

    Args:
        arenas: tensors `[layers, pages, heads, page, size]`, contiguous in the last dimension; changed in place.
        block_table: `[B, P]` int32, pages of every sequence.
        lengths: `[B]` int32, committed tokens.
        path: `[B, D]` int64, ascending node ids, -1 padded.
        num_accepted: `[B]` int32.
        backend: "auto" is triton on a GPU, naive elsewhere.

    Raises:
        ValueError: shapes do not fit, or the backend is unknown.
    """
    batch = lengths.shape[0]
    if path.dim() != 2 or path.shape[0] != batch or num_accepted.shape != (batch,) or block_table.shape[0] != batch:
        raise ValueError(
            f"block_table, path and num_accepted must have lengths' {batch} sequences, got {list(block_table.shape)}, "
            f"{list(path.shape)} and {list(num_accepted.shape)}"
        )
    for i, arena in enumerate(arenas):
        if arena.dim() != 5 or arena.stride(4) != 1:
            raise ValueError(
                f"arenas[{i}] must be [layers, pages, heads, page, size], contiguous in size, got {list(arena.shape)} "
                f"with strides {arena.stride()}"
            )
    if backend == "auto":
        backend = "triton" if prefers_triton(lengths.device) else "naive"
    if backend == "naive":
        kv_commit_naive(arenas, block_table, lengths, path, num_accepted)
    elif backend == "triton":
        require_triton()
        from specdec.kernels.kv_commit.fused import kv_commit_fused

        kv_commit_fused(arenas, block_table, lengths, path, num_accepted)
    else:
        raise ValueError(f"backend must be auto, naive or triton, got {backend!r}")
