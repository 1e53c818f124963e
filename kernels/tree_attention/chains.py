"""Causal chains as the variable-length kernels of others take them: packed rows, lengths, and pages or packed keys."""

from typing import NamedTuple

import torch
from torch import Tensor

from specdec.kernels.tree_attention.plan import Plan, Span

PAGE_MULTIPLE = 256  # FlashAttention 2 reads pages in place only at multiples of this many slots
MAX_HEAD_SIZE = 256
_DEVICE = "cuda"


class Chains(NamedTuple):
    """Chains whose rows are bottom-right aligned with their slots: the last row sees all of them."""

    spans: tuple[Span, ...]
    rows: Tensor | None  # [M] int64, the rows of q that belong to a chain, in order; None: all of them
    row_starts: Tensor  # [C + 1] int32
    slot_starts: Tensor  # [C + 1] int32
    lengths: Tensor  # [C] int32, slots
    block_table: Tensor  # [C, P] int32
    longest_rows: int
    longest_slots: int


def chains_of(plan: Plan) -> Chains:
    """`make_chains`, once for all layers."""
    if not plan._chains:
        plan._chains.append(make_chains(plan))
    chains: Chains = plan._chains[0]
    return chains


def make_chains(plan: Plan) -> Chains:
    """The chains of a step. Padding behind a chain, which sees the context alone, becomes chains of one row."""
    spans: list[Span] = []
    for span in plan.spans:
        if span.chain_offset >= 0:
            spans.append(span)
        else:
            spans += [span._replace(first=row, end=row + 1) for row in range(span.first, span.end)]
    counts = [span.end - span.first for span in spans]
    lengths = [span.context + span.size for span in spans]
    device = plan.block_table.device
    rows = None
    if not plan.covered:
        rows = torch.tensor([row for span in spans for row in range(span.first, span.end)], device=device)
    table = plan.block_table[torch.tensor([span.sequence for span in spans], dtype=torch.int64, device=device)]
    return Chains(
        tuple(spans), rows, _starts(counts, device), _starts(lengths, device),
        torch.tensor(lengths, dtype=torch.int32, device=device), table.clamp(min=0).int(),
        max(counts, default=0), max(lengths, default=0),
    )  # fmt: skip


def in_place(pool: Tensor, q: Tensor) -> bool:
    """Whether pages can be read where they are. pool `[pages, Hkv, page, D]`."""
    return pool.shape[2] % PAGE_MULTIPLE == 0 and pool.dtype == q.dtype


def pack(pool: Tensor, plan: Plan, chains: Chains, q: Tensor) -> Tensor:
    """Slots of all chains, one behind the other. pool `[pages, Hkv, page, D]` -> `[slots, Hkv, D]` in q's dtype."""
    parts = [plan.read(pool, span, 0)[0].transpose(0, 1) for span in chains.spans]  # [slots, Hkv, D]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(q.dtype)


def check_chains(backend: str, q: Tensor, v_pool: Tensor, words: Tensor | None, sinks: Tensor | None) -> None:
    """Refuse what FlashAttention cannot do.

    Raises:
        ValueError: trees, a device other than CUDA, a dtype, head sizes, or sinks; it says what to use.
    """
    if words is not None:
        raise ValueError(f"backend {backend!r} does chains and prompts (words=None), it has no tree mask; use 'triton'")
    if q.device.type != _DEVICE:
        raise ValueError(f"backend {backend!r} needs tensors on CUDA, got {q.device}; use 'packed'")
    if sinks is not None:
        raise ValueError(f"backend {backend!r} has no sinks; use 'triton'")
    if not fits(q, v_pool):
        raise ValueError(
            f"backend {backend!r} takes float16 and bfloat16 and equal head sizes up to {MAX_HEAD_SIZE} in multiples "
            f"of 8, got {q.dtype} and head sizes {q.shape[2]} and {v_pool.shape[3]}; use 'sdpa'"
        )


def fits(q: Tensor, v_pool: Tensor) -> bool:
    """Whether FlashAttention takes this dtype and these head sizes."""
    dim = q.shape[2]
    sizes = dim == v_pool.shape[3] and dim % 8 == 0 and dim <= MAX_HEAD_SIZE
    return sizes and q.dtype in (torch.float16, torch.bfloat16)


def window_sides(window: int) -> tuple[int, int]:
    """FlashAttention's (left, right) for a causal window that counts the row itself; 0 is no window."""
    return (window - 1 if window else -1, 0)


def _starts(counts: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *counts], device=device).cumsum(0).int()
