"""Prompts and chains through the flash-attn package (version 2), an extra that is imported when used. CUDA only.

Equally many rows a sequence in pages that it can read, a step of a decoding batch, go through
`flash_attn_with_kvcache`, which splits long contexts over the processors; everything else is packed and goes through
`flash_attn_varlen_func`.
"""

import importlib.util
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from specdec.kernels.tree_attention.chains import chains_of, check_chains, in_place, pack, window_sides
from specdec.kernels.tree_attention.plan import Plan

INSTALL = 'pip install --no-build-isolation "specdec[flash-attn]" (it builds against the torch that is installed)'


def attend(
    q: Tensor,  # [R, Hq, D]
    k_pool: Tensor,  # [pages, Hkv, page, D]
    v_pool: Tensor,  # [pages, Hkv, page, D]
    plan: Plan,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `packed.attend`, for plans without words, and without sinks.

    Raises:
        ValueError: it cannot do what is asked for, or the package is absent.
    """
    check_chains("flash_attn", q, v_pool, plan.words, sinks)
    package = _package()
    chains = chains_of(plan)
    out = torch.zeros_like(q)
    if not chains.spans:
        return out
    rows = q if chains.rows is None else q[chains.rows]  # [M, Hq, D]
    settings = {"softmax_scale": scale, "causal": True, "window_size": window_sides(window), "softcap": softcap}
    count, longest = len(chains.spans), chains.longest_rows
    uniform = len(rows) == count * longest
    dense = chains.longest_slots <= k_pool.shape[2] and k_pool.dtype == q.dtype
    if uniform and (dense or in_place(k_pool, q)):
        where = (
            {"cache_batch_idx": chains.block_table[:, 0].contiguous()} if dense else {"block_table": chains.block_table}
        )
        done = package.flash_attn_with_kvcache(
            rows.view(count, longest, *q.shape[1:]), k_pool.transpose(1, 2), v_pool.transpose(1, 2),
            cache_seqlens=chains.lengths, **where, **settings,
        ).flatten(0, 1)  # fmt: skip
    else:
        done = package.flash_attn_varlen_func(
            rows, pack(k_pool, plan, chains, q), pack(v_pool, plan, chains, q), chains.row_starts, chains.slot_starts,
            longest, chains.longest_slots, **settings,
        )  # fmt: skip
    if chains.rows is None:
        return done
    out[chains.rows] = done
    return out


@cache
def installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("flash_attn") is not None


def _package() -> ModuleType:
    try:
        import flash_attn
    except ImportError as error:
        raise ValueError(
            f"backend 'flash_attn' needs the package flash-attn ({error}); install it: {INSTALL}"
        ) from error
    return flash_attn
