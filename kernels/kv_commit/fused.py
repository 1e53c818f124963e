"""Move the KV of accepted paths in place: one launch for all layers, heads and sequences of a tensor."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def kv_commit_kernel(
    arena,  # [layers, pages, heads, PAGE, D]
    block_table,  # [B, P]
    lengths,  # [B]
    path,  # [B, depth]
    num_accepted,  # [B]
    stride_layer,
    stride_page,
    stride_head,
    stride_slot,
    stride_table,
    stride_path,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    layer = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2)
    first = tl.load(lengths + b)
    count = tl.load(num_accepted + b)
    i = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    base = arena + layer * stride_layer + head * stride_head
    table = block_table + b * stride_table
    # block after block: a path ascends, so what a block writes lies below all that later blocks read
    for start in tl.range(0, count, ROWS):
        step = start + i
        node = tl.load(path + b * stride_path + step, mask=step < count, other=0).to(tl.int32)
        moves = (step < count) & (node != step)
        source, target = first + node, first + step
        from_page = tl.load(table + source // PAGE, mask=moves, other=0).to(tl.int64)
        to_page = tl.load(table + target // PAGE, mask=moves, other=0).to(tl.int64)
        mask = moves[:, None] & (d < D)[None, :]
        read = base + from_page * stride_page + (source % PAGE) * stride_slot
        rows = tl.load(read[:, None] + d[None, :], mask=mask)  # [ROWS, BLOCK_D]
        tl.debug_barrier()  # within a block a slot may be source and target: read all, then write
        write = base + to_page * stride_page + (target % PAGE) * stride_slot
        tl.store(write[:, None] + d[None, :], rows, mask=mask)


def kv_commit_fused(
    arenas: Sequence[Tensor], block_table: Tensor, lengths: Tensor, path: Tensor, num_accepted: Tensor
) -> None:
    """See `specdec.kernels.kv_commit.kv_commit`. Reads nothing to the host."""
    for arena in arenas:
        layers, _, heads, page, size = arena.shape
        kv_commit_kernel[(layers, heads, lengths.shape[0])](
            arena,
            block_table,
            lengths,
            path,
            num_accepted,
            *arena.stride()[:4],
            block_table.stride(0),
            path.stride(0),
            D=size,
            PAGE=page,
            BLOCK_D=triton.next_power_of_2(size),
            ROWS=16,
        )
