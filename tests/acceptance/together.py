"""Attention over all slots in one call, to save time with hundreds of slots of a toy model.

Shipped is one call a sequence, which is the faster way for models that are no toys. What is computed is the same, see
`test_statistical.py::test_attention_together_is_the_same`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from specdec.kernels.tree_attention.naive import visible_nodes
from specdec.kernels.tree_attention.plan import Plan


def attend(q: Tensor, k_pool: Tensor, v_pool: Tensor, plan: Plan, *, scale: float, **nothing: object) -> Tensor:
    """As `packed.attend`, for dense caches without window, soft-capping and sinks: q `[R, Hq, D]`, pools
    `[B, Hkv, room, D]`; returns `[R, Hq, D]`."""
    assert not any(x is not None and x for x in nothing.values())
    numbers = [(s.sequence, s.first, s.end - s.first, s.context, s.size, s.chain_offset) for s in plan.spans]
    sequences, first, counts, contexts, sizes, offsets = torch.tensor(numbers).T[..., None]  # [S, 1] each
    place, slot = torch.arange(int(counts.max())), torch.arange(plan.longest)  # [T], [L]
    live = place < counts  # [S, T]
    rows = first + torch.where(live, place, 0)
    if plan.words is None:
        seen = slot <= (contexts + offsets + rows - first)[..., None]  # [S, T, L]
    else:
        most = int(sizes.max())
        nodes = visible_nodes(plan.words, plan.rows, most)[rows]  # [S, T, most]
        node = (slot - contexts).clamp(0, most - 1)[:, None].expand(-1, len(place), -1)  # [S, T, L]
        seen = (slot < contexts)[:, None] | nodes.gather(2, node) & (slot < contexts + sizes)[:, None]
    heads, group = k_pool.shape[1], q.shape[1] // k_pool.shape[1]
    bias = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, float("-inf")).repeat(1, group, 1)[:, None]
    k, v = (pool[:, :, : plan.longest].index_select(0, sequences[:, 0]) for pool in (k_pool, v_pool))  # [S, Hkv, L, D]
    packed = q[rows].unflatten(2, (heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [S, Hkv, G * T, D]
    done = scaled_dot_product_attention(packed, k, v, attn_mask=bias, scale=scale)
    done = done.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)  # [S, T, Hq, D]
    out = torch.zeros_like(q)
    out[rows[live]] = done[live]
    return out
