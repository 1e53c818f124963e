"""Tree attention for CPUs: the query heads of one KV head packed into one matrix, one sequence after the other.

Three ways to do the arithmetic of one sequence; README.md has the measurements behind the choice:
SDPA on the packed rows (one operator, float32 accumulation), two matmuls (faster for many rows in bfloat16),
and two float32 matmuls for what SDPA cannot do (soft-capping, sinks, value heads of another width).
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from specdec.kernels.tree_attention.plan import Plan, Span, chunks

_SCORE_BYTES = 64 << 20  # bound on one block of scores
_CHUNK_ROWS = 128  # rows of a causal chain done at a time
_ALIGNMENT = 64  # bytes, torch's own
_MATMUL_ROWS = 64  # packed bfloat16 rows from which on two matmuls beat SDPA, for any length and head size


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
    fixed_chunks: bool = False,
) -> Tensor:
    """Attention of one layer. Unchecked: the arguments must fit the plan.

    Args:
        q, k_pool, v_pool, scale, window, softcap, sinks: as in `tree_attention`.
        plan: from `make_plan`, shared by all layers of a step.
        fixed_chunks: compute every row on its own, over its own path in path order. Slow; a row's bits then depend on
            nothing but its own context and path, and equal those of one-token decoding.

    Returns:
        `[R, Hq, Dv]` in q's dtype.
    """
    if fixed_chunks:
        return _attend_rows(q, k_pool, v_pool, plan, scale, window, softcap, sinks)
    if len(plan.spans) == 1 and plan.covered and q.shape[0] <= _limit(q, plan):
        return _attend_span(q, k_pool, v_pool, plan, plan.spans[0], scale, window, softcap, sinks)
    out = q.new_empty(q.shape[0], q.shape[1], v_pool.shape[3])  # [R, Hq, Dv]
    if not plan.covered or not plan.spans:
        out.zero_()
    for span in plan.spans:
        attend_span(out, q, k_pool, v_pool, plan, span, scale, window, softcap, sinks)
    return out


def attend_span(
    out: Tensor,  # [R, Hq, Dv]
    q: Tensor,  # [R, Hq, D]
    k_pool: Tensor,
    v_pool: Tensor,
    plan: Plan,
    span: Span,
    scale: float,
    window: int,
    softcap: float = 0.0,
    sinks: Tensor | None = None,  # [Hq]
) -> None:
    """Attention of one sequence, put into its rows of `out`."""
    limit = _limit(q, plan)
    for part in chunks(span, limit) if plan.words is None else _split(span, limit):
        out[part.first : part.end] = _attend_span(
            q[part.first : part.end], k_pool, v_pool, plan, part, scale, window, softcap, sinks
        )


def _limit(q: Tensor, plan: Plan) -> int:
    """Rows done at a time."""
    return max(16, min(_CHUNK_ROWS, _SCORE_BYTES // (q.shape[1] * 4 * plan.longest + 1)))


def _split(span: Span, rows: int) -> list[Span]:
    """Row blocks of a tree; every block may see every node."""
    firsts = range(span.first, span.end, rows)
    return [span._replace(first=first, end=min(first + rows, span.end)) for first in firsts]


def _attend_span(
    q: Tensor,  # [rows, Hq, D]
    k_pool: Tensor,
    v_pool: Tensor,
    plan: Plan,
    span: Span,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    rows, q_heads, dim = q.shape
    heads = k_pool.shape[1]
    group = q_heads // heads
    fast = not softcap and sinks is None and k_pool.dtype == q.dtype and v_pool.shape[3] == dim
    start, bias = plan.bias(span, window, group, q.dtype if fast else torch.promote_types(q.dtype, torch.float32))
    k = plan.read(k_pool, span, start)  # [1, Hkv, S, D]
    v = plan.read(v_pool, span, start)  # [1, Hkv, S, Dv]
    return _attend_block(q, k, v, bias, scale, softcap, sinks, fast)


def _attend_block(
    q: Tensor,  # [rows, Hq, D]
    k: Tensor,  # [1, Hkv, S, D]
    v: Tensor,  # [1, Hkv, S, Dv]
    bias: Tensor | None,  # [G * rows, S]
    scale: float,
    softcap: float,
    sinks: Tensor | None,  # [Hq]
    fast: bool,
) -> Tensor:
    rows, q_heads, dim = q.shape
    heads = k.shape[1]
    group = q_heads // heads
    packed_rows = group * rows
    packed = q.transpose(0, 1).reshape(1, heads, packed_rows, dim)  # no copy when q is stored heads first
    if not fast:
        out = _attend_wide(packed[0], k[0], v[0], bias, scale, softcap, sinks).to(q.dtype)
    elif q.dtype == torch.bfloat16 and packed_rows >= _MATMUL_ROWS:
        out = _attend_matmul(packed[0], k[0], v[0], bias, scale)
    elif packed_rows == 1 and q.element_size() == 2:  # a single row takes a path of SDPA that is slower than two rows
        out = scaled_dot_product_attention(packed.repeat(1, 1, 2, 1), k, v, attn_mask=bias, scale=scale)[:, :, :1]
    else:
        out = scaled_dot_product_attention(packed, k, v, attn_mask=bias, scale=scale)
    return out.view(heads, group, rows, -1).permute(2, 0, 1, 3).reshape(rows, q_heads, -1)


def _attend_matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """q `[Hkv, M, D]`, k `[Hkv, S, D]`, v `[Hkv, S, Dv]`, bias `[M, S]` -> `[Hkv, M, Dv]`; scores in q's dtype."""
    if bias is None:
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)  # [Hkv, M, S]
    else:
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, 2), v)


def _attend_wide(
    q: Tensor,  # [Hkv, M, D]
    k: Tensor,  # [Hkv, S, D]
    v: Tensor,  # [Hkv, S, Dv]
    bias: Tensor | None,  # [M, S] float32
    scale: float,
    softcap: float,
    sinks: Tensor | None,  # [Hq]
) -> Tensor:
    """Everything in at least float32 -> `[Hkv, M, Dv]`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    heads, packed_rows, _ = q.shape
    scores = torch.bmm(q.to(wide) * scale, k.to(wide).transpose(1, 2))  # [Hkv, M, S]
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if bias is not None:
        scores += bias
    if sinks is None:
        top = scores.amax(2, keepdim=True).clamp_(min=torch.finfo(wide).min)  # rows that see nothing: no -inf - -inf
        weights = scores.sub_(top).exp_()
        total = weights.sum(2, keepdim=True).clamp_(min=torch.finfo(wide).tiny)
    else:
        group = sinks.shape[0] // heads
        sink = sinks.to(wide).view(heads, group, 1).expand(heads, group, packed_rows // group)
        sink = sink.reshape(heads, packed_rows, 1)
        top = torch.maximum(scores.amax(2, keepdim=True), sink).clamp_(min=torch.finfo(wide).min)
        weights = scores.sub_(top).exp_()
        total = weights.sum(2, keepdim=True) + (sink - top).exp_()
    return torch.bmm(weights, v.to(wide)).div_(total)


def _attend_rows(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    plan: Plan,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Every row as one-token decoding would do it: its context and its path, in path order, nothing else.

    Slots that lie side by side are read where they are if that keeps them at the same alignment as a copy, which
    libraries look at when they choose a kernel.
    """
    out = q.new_zeros(q.shape[0], q.shape[1], v_pool.shape[3])  # [R, Hq, Dv]
    fast = not softcap and sinks is None and k_pool.dtype == q.dtype and v_pool.shape[3] == q.shape[2]
    in_place = all(x.shape[3] * x.element_size() % _ALIGNMENT == 0 for x in (k_pool, v_pool))
    for span in plan.spans:
        pools = plan.read(k_pool, span, 0), plan.read(v_pool, span, 0)  # [1, Hkv, S, D]
        for row, (start, end, slots) in enumerate(plan.paths(span, window), span.first):
            if start == end:
                continue
            if slots is not None:
                k, v = (x.index_select(2, slots) for x in pools)
            else:
                k, v = (x[:, :, start:end] if in_place else x[:, :, start:end].clone() for x in pools)
            out[row] = _attend_block(q[row : row + 1], k, v, None, scale, softcap, sinks, fast)[0]
    return out
