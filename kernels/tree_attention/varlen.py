"""Prompts and chains through torch's own variable-length FlashAttention (`torch.nn.attention.varlen`). CUDA only.

Pages are read in place where torch takes a block table (from 2.12 on) and the page size suits it; otherwise keys and
values are packed first, which copies them. torch without grouped heads there (2.11) gets them repeated.
"""

import importlib.util
import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from specdec.kernels.tree_attention.chains import chains_of, check_chains, in_place, pack, window_sides
from specdec.kernels.tree_attention.plan import Plan

NEEDED = {"window_size", "scale"}


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
    """As `packed.attend`, for plans without words, and without soft-capping and sinks.

    Raises:
        ValueError: it cannot do what is asked for, or this torch has no such operator.
    """
    check_chains("varlen", q, v_pool, plan.words, sinks)
    if softcap:
        raise ValueError(f"backend 'varlen' has no softcap, got {softcap}; use 'triton' or 'flash_attn'")
    known = parameters()
    if not known >= NEEDED:
        raise ValueError(
            f"backend 'varlen' needs varlen_attn with window_size and scale (torch 2.11 or newer), torch "
            f"{torch.__version__} has {'none' if not known else 'an older one'}; use 'sdpa'"
        )
    out = torch.zeros_like(q)
    chains = chains_of(plan)
    if not chains.spans:
        return out
    from torch.nn.attention.varlen import varlen_attn

    rows = q if chains.rows is None else q[chains.rows]  # [M, Hq, D]
    settings: dict[str, Any] = {"scale": scale, "window_size": window_sides(window)}
    if "block_table" in known and in_place(k_pool, q):
        k, v = k_pool.transpose(1, 2), v_pool.transpose(1, 2)  # [pages, page, Hkv, D]
        settings |= {"seqused_k": chains.lengths, "block_table": chains.block_table}
    else:
        k, v = pack(k_pool, plan, chains, q), pack(v_pool, plan, chains, q)  # [slots, Hkv, D]
    if "enable_gqa" in known:
        settings["enable_gqa"] = q.shape[1] != k_pool.shape[1]
    else:
        k, v = (x.repeat_interleave(q.shape[1] // k_pool.shape[1], 1) for x in (k, v))
    done: Any = varlen_attn(
        rows, k, v, chains.row_starts, chains.slot_starts, chains.longest_rows, chains.longest_slots, **settings
    )  # [M, Hq, D]
    if chains.rows is None:
        return done
    out[chains.rows] = done
    return out


@cache
def parameters() -> frozenset[str]:
    """Names that this torch's `varlen_attn` takes; empty where there is none."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return frozenset()
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


@cache
def available(device: torch.device) -> bool:
    """Whether this torch and this GPU have it: FlashAttention needs compute capability 8.0."""
    built = torch.backends.cuda.is_flash_attention_available()
    return built and parameters() >= NEEDED and torch.cuda.get_device_capability(device) >= (8, 0)
