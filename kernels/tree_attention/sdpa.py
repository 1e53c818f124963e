"""Tree attention through torch's scaled_dot_product_attention with a dense mask. Any device; reads lengths to the host.

The rival that the benchmarks compare with, and on CUDA the path of prompts (causal chains), which need no tree kernel.
"""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from specdec.kernels.tree_attention.plan import Plan, chunks

_MASK_BYTES = 64 << 20  # bound on one dense mask


def attend(
    q: Tensor,  # [R, Hq, D]
    k_pool: Tensor,  # [pages, Hkv, page, D]
    v_pool: Tensor,  # [pages, Hkv, page, Dv]
    plan: Plan,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `packed.attend`, without soft-capping and sinks, which SDPA does not have.

    Raises:
        ValueError: softcap or sinks is given.
    """
    if softcap or sinks is not None:
        raise ValueError(f"backend 'sdpa' has neither softcap (got {softcap}) nor sinks; use 'packed' or 'triton'")
    grouped = k_pool.shape[1] != q.shape[1]
    out = q.new_zeros(q.shape[0], q.shape[1], v_pool.shape[3])  # [R, Hq, Dv]
    for span in plan.spans:
        causal = plan.words is None and span.context == 0 and span.chain_offset == 0
        causal = causal and (window == 0 or window >= span.size)
        limit = max(16, _MASK_BYTES // (q.element_size() * (span.context + span.size)))
        for part in [span] if causal or plan.words is not None else chunks(span, limit):
            start, bias = (0, None) if causal else plan.bias(part, window, 1, q.dtype)
            k = plan.read(k_pool, part, start).to(q.dtype)  # [1, Hkv, S, D]
            v = plan.read(v_pool, part, start).to(q.dtype)  # [1, Hkv, S, Dv]
            rows = q[part.first : part.end].transpose(0, 1)[None]  # [1, Hq, rows, D]
            done = scaled_dot_product_attention(
                rows, k, v, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=grouped
            )
            done = done[0].transpose(0, 1)  # [rows, Hq, Dv]
            if span.context == 0 and not causal:  # SDPA answers NaN on some devices for a row that sees nothing
                done = done.masked_fill(~plan.nodes(part).any(1)[:, None, None], 0.0)
            out[part.first : part.end] = done
    return out
