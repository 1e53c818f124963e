"""Tree attention through torch's FlexAttention: one call for the batch, a mask over the ancestor words.

FlexAttention wants keys as `[B, Hkv, S, D]`. A dense cache (one page a sequence, in order, all sequences of one length)
is that already and is read in place; every other pool is gathered into zeroed memory first, because a slot that belongs
to no one may hold NaN and a masked weight of 0 does not silence it. The mask and the layout are made once a step with
`make_mask`, so that a benchmark can time `attend_dense` alone.

On CUDA the call is compiled with max-autotune, since FlexAttention's default tile sizes are poor on sm_90 (minutes for
each new shape); on the CPU it runs as plain operators, which materialise the scores.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.kernels.tree_attention.naive import visible_slots
from specdec.kernels.tree_attention.plan import Plan

_BLOCK = 128  # rows and slots of a block that FlexAttention may skip


class Mask(NamedTuple):
    """Who sees what, as FlexAttention takes it. One entry of its batch is one span of the plan."""

    blocks: Any  # torch's BlockMask over [S, 1, T, slots]
    rows: Tensor  # [S, T] int64, the row of q at each place; places behind a span's rows repeat its first
    live: Tensor  # [S, T] bool, the places that are rows
    slots: int


def attend(
    q: Tensor,  # [R, Hq, D]
    k_pool: Tensor,  # [pages, Hkv, page, D]
    v_pool: Tensor,  # [pages, Hkv, page, Dv]
    plan: Plan,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,  # [Hq]
) -> Tensor:
    """As `packed.attend`.

    Raises:
        ValueError: float64, or a head size below 16, on CUDA.
    """
    dim, value_dim = q.shape[2], v_pool.shape[3]
    if q.device.type == "cuda" and (q.dtype == torch.float64 or min(dim, value_dim) < 16):
        raise ValueError(
            f"backend 'flex' takes 16 and 32-bit floats and head sizes from 16 on CUDA, got {q.dtype} and head sizes "
            f"{dim} and {value_dim}; use 'sdpa'"
        )
    out = q.new_zeros(q.shape[0], q.shape[1], value_dim)  # [R, Hq, Dv]
    if not plan.spans:
        return out
    mask = make_mask(plan, window)
    k, v = (_dense(pool, plan, mask.slots).to(q.dtype) for pool in (k_pool, v_pool))
    rows = q[mask.rows].transpose(1, 2)  # [S, Hq, T, D]
    done = attend_dense(rows, k, v, mask, scale=scale, softcap=softcap, sinks=sinks)
    out[mask.rows[mask.live]] = done.transpose(1, 2)[mask.live]
    return out


def attend_dense(
    q: Tensor,  # [S, Hq, T, D]
    k: Tensor,  # [S, Hkv, slots, D]
    v: Tensor,  # [S, Hkv, slots, Dv]
    mask: Mask,
    *,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,  # [Hq]
    attention: Callable[..., Any] | None = None,
) -> Tensor:
    """FlexAttention on operands that lie as it wants them; values must be finite in every slot.

    Args:
        q, k, v, scale, softcap, sinks: as in `attend`, one batch entry a span.
        mask: from `make_mask`.
        attention: a compiled `flex_attention`; None: compiled on CUDA, plain operators on the CPU.

    Returns:
        `[S, Hq, T, Dv]` in q's dtype; the places behind a span's rows hold no result.
    """
    attention = attention or _attention(q.device.type == "cuda")
    capped = (lambda score, b, h, row, slot: softcap * torch.tanh(score / softcap)) if softcap else None
    settings = {"block_mask": mask.blocks, "scale": scale, "enable_gqa": k.shape[1] != q.shape[1]}
    if sinks is None:
        out: Tensor = attention(q, k, v, capped, **settings)
        return out
    from torch.nn.attention.flex_attention import AuxRequest

    out, aux = attention(q, k, v, capped, **settings, return_aux=AuxRequest(lse=True))
    kept = torch.sigmoid(aux.lse - sinks.to(aux.lse.dtype)[:, None])  # [S, Hq, T], the sink takes the rest of the sum
    return (out * kept[..., None]).to(q.dtype)


def make_mask(plan: Plan, window: int = 0) -> Mask:
    """Lay out the rows of a step and say which slots they see.

    A row sees slots `first : last`, and past its context only the nodes of its words. A window cuts `first` and the
    words; chains have no words, their `last` rises row by row.
    """
    from torch.nn.attention.flex_attention import BlockMask

    device, spans = plan.block_table.device, plan.spans
    count = max(span.end - span.first for span in spans)  # T
    slots = max(span.context + span.size for span in spans)
    place = torch.arange(count, device=device)  # [T]
    starts, lengths, contexts, ends, offsets = (
        torch.tensor(values, device=device)[:, None]
        for values in zip(
            *((s.first, s.end - s.first, s.context, s.context + s.size, s.chain_offset) for s in spans), strict=True
        )
    )  # [S, 1]
    live = place < lengths  # [S, T]
    rows = starts + torch.where(live, place, 0)  # [S, T]
    words: Tensor | None = None
    if plan.words is None:
        last = torch.minimum(contexts + offsets + place + 1, ends)  # [S, T]
        first = (last - window).clamp(min=0) if window else torch.zeros_like(last)
    else:
        last = ends.expand_as(rows)
        first, words = torch.zeros_like(last), plan.words[rows]  # [S, T, W]
        if window:
            first, words = _windowed(plan, window, rows, words)
    blocks = -(-slots // _BLOCK)
    reach = torch.where(live, last, 0)
    reach = torch.nn.functional.pad(reach, (0, -count % _BLOCK)).view(len(spans), -1, _BLOCK).amax(2)  # [S, row blocks]
    needed = ((reach + _BLOCK - 1) // _BLOCK).int()[:, None]  # [S, 1, row blocks]
    order = torch.arange(blocks, dtype=torch.int32, device=device).expand(*needed.shape, blocks).contiguous()
    mask = BlockMask.from_kv_blocks(
        needed, order, BLOCK_SIZE=(_BLOCK, _BLOCK), mask_mod=_visible(first, last, contexts[:, 0], words),
        seq_lengths=(count, slots),
    )  # fmt: skip
    return Mask(mask, rows, live, slots)


def _visible(first: Tensor, last: Tensor, contexts: Tensor, words: Tensor | None) -> Callable[..., Tensor]:
    """FlexAttention's mask function. first, last `[S, T]`, contexts `[S]`, words `[S, T, W]`."""

    def between(b: Tensor, h: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        return (slot >= first[b, row]) & (slot < last[b, row])

    if words is None:
        return between
    highest = 64 * words.shape[2] - 1

    def node_bit(b: Tensor, h: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        node = slot - contexts[b]
        inside = node.clamp(0, highest)
        bit = (words[b, row, inside // 64] >> (inside % 64)) & 1
        return between(b, h, row, slot) & ((node < 0) | (bit != 0))

    return node_bit


def _windowed(plan: Plan, window: int, rows: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """First context slot of every row `[S, T]`, and the words without nodes that are out of the window."""
    first, kept = torch.zeros_like(rows), words.clone()
    weight = torch.ones(64, dtype=torch.int64, device=words.device) << torch.arange(64, device=words.device)
    for i, span in enumerate(plan.spans):
        nodes, count = plan.nodes(span), span.end - span.first  # [rows, size]
        seen = visible_slots(nodes, span.context, window)[:, span.context :]
        bits = seen.new_zeros(count, words.shape[2] * 64)
        bits[:, : span.size] = seen
        kept[i, :count] = (bits.view(count, -1, 64) * weight).sum(2)
        first[i, :count] = (span.context + nodes.sum(1) - window).clamp(min=0)
    return first, kept


def _dense(pool: Tensor, plan: Plan, slots: int) -> Tensor:
    """pool `[pages, Hkv, page, D]` -> `[S, Hkv, slots, D]`, in place where it lies so."""
    spans = plan.spans
    in_order = all(plan.pages[span.sequence][0] == i for i, span in enumerate(spans))
    if in_order and slots <= pool.shape[2] and all(span.context + span.size == slots for span in spans):
        return pool[: len(spans), :, :slots]
    out = pool.new_zeros(len(spans), pool.shape[1], slots, pool.shape[3])
    for i, span in enumerate(spans):
        out[i, :, : span.context + span.size] = plan.read(pool, span, 0)[0]
    return out


@cache
def _attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    if not compiled:
        return flex_attention
    return torch.compile(flex_attention, mode="max-autotune-no-cudagraphs")


def compiled(device: torch.device) -> Callable[..., Any]:
    """A fresh compiled `flex_attention` for one fixed shape: max-autotune on CUDA, for `attend_dense` in benchmarks."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(
        flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs" if device.type == "cuda" else None
    )
