"""Move the KV of accepted paths next to the committed tokens: all layers, in place."""

from collections.abc import Sequence

from torch import Tensor

from specdec.kernels.kv_commit.naive import kv_commit as naive


def kv_commit(
    arenas: Sequence[Tensor], block_table: Tensor, lengths: Tensor, path: Tensor, num_accepted: Tensor
) -> None:
    """Row `lengths + path[i]` of every layer and head becomes row `lengths + i`, for i below `num_accepted`.

    Args:
        arenas: tensors `[layers, pages, heads, page, size]`.
        block_table: `[B, P]` int32, pages of every sequence.
        lengths: `[B]` int32, committed tokens.
        path: `[B, D]` int64, ascending node ids, -1 padded.
        num_accepted: `[B]` int32.
    """
    naive(arenas, block_table, lengths, path, num_accepted)
