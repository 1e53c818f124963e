"""Tree attention written to be read: one sequence at a time, one full score matrix, no tricks.

In float64 this is the oracle of the tests; in bfloat16 or float16 it rounds where an eager transformers model rounds
(scores and weights in the input's dtype, softmax in float32), so its own error is the yardstick for the other backends.
"""

import torch
from torch import Tensor


def visible_nodes(words: Tensor | None, rows: int, size: int) -> Tensor:
    """Which of a sequence's nodes each of its rows sees.

    Args:
        words: `[rows, W]` int64 ancestor words, or None for a causal chain whose last nodes are the rows.
        rows: number of rows of the sequence.
        size: number of nodes of the sequence.

    Returns:
        `[rows, size]` bool.
    """
    if words is None:
        row = torch.arange(rows)[:, None]  # [rows, 1]
        last = row + max(size - rows, 0)  # the newest node row sees: itself
        return (torch.arange(size)[None] <= last) & (last < size)
    node = torch.arange(size, device=words.device)
    return (words[:, node // 64] >> (node % 64)) & 1 != 0


def visible_slots(nodes: Tensor, context: int, window: int) -> Tensor:
    """Which cache slots each row sees: the context and its own nodes, both cut to the sliding window.

    Args:
        nodes: `[rows, size]` bool, from `visible_nodes`.
        context: number of committed slots before node 0.
        window: number of positions a row sees, itself included; 0 for all.

    Returns:
        `[rows, context + size]` bool.
    """
    rows = nodes.shape[0]
    seen = torch.cat([nodes.new_ones(rows, context), nodes], dim=1)  # [rows, context + size]
    if window == 0:
        return seen
    count = nodes.long()
    position = context + count.sum(1, keepdim=True) - 1  # [rows, 1]
    newer = count.sum(1, keepdim=True) - count.cumsum(1)  # [rows, size] visible nodes with a larger index
    slot = torch.arange(context, device=nodes.device).expand(rows, context)
    slot_position = torch.cat([slot, position - newer], dim=1)  # [rows, context + size]
    return seen & (position - slot_position < window)


def gather_slots(pool: Tensor, pages: Tensor, length: int) -> Tensor:
    """The first `length` slots of a sequence. pool `[pages, Hkv, page, D]`, pages `[P]` -> `[length, Hkv, D]`."""
    used = pages[: -(-length // pool.shape[2])].long()
    return pool[used].transpose(1, 2).flatten(0, 1)[:length]


def tree_attention_naive(
    q: Tensor,  # [R, Hq, D]
    k_pool: Tensor,  # [pages, Hkv, page, D]
    v_pool: Tensor,  # [pages, Hkv, page, Dv]
    block_table: Tensor,  # [B, P]
    row_starts: Tensor,  # [B + 1]
    context_lens: Tensor,  # [B]
    tree_sizes: Tensor,  # [B]
    words: Tensor | None,  # [R, W]
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,  # [Hq]
) -> Tensor:
    """See `specdec.kernels.tree_attention.tree_attention`. Computes in q's dtype, the softmax in at least float32."""
    group = q.shape[1] // k_pool.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros(q.shape[0], q.shape[1], v_pool.shape[3])  # [R, Hq, Dv]
    starts = row_starts.tolist()
    for b, (context, size) in enumerate(zip(context_lens.tolist(), tree_sizes.tolist(), strict=True)):
        first, end = starts[b], starts[b + 1]
        if first == end or context + size == 0:
            continue
        k = gather_slots(k_pool, block_table[b], context + size).to(q.dtype).repeat_interleave(group, 1)  # [S, Hq, D]
        v = gather_slots(v_pool, block_table[b], context + size).to(q.dtype).repeat_interleave(group, 1)  # [S, Hq, Dv]
        nodes = visible_nodes(None if words is None else words[first:end], end - first, size).to(q.device)
        seen = visible_slots(nodes, context, window)  # [rows, S]

        scores = torch.einsum("rhd,shd->hrs", q[first:end], k) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.to(wide).masked_fill(~seen, float("-inf"))
        if sinks is not None:
            sink = sinks.to(wide)[:, None, None].expand(-1, end - first, 1)
            scores = torch.cat([scores, sink], dim=2)  # [Hq, rows, S + 1]
        weights = scores.softmax(2)[:, :, : context + size]
        weights = weights.masked_fill(~seen, 0.0)  # a row that sees nothing gives 0, not NaN
        out[first:end] = torch.einsum("hrs,shd->rhd", weights.to(q.dtype), v)
    return out
