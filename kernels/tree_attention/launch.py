"""Launches the Triton kernels: block sizes by plain Python rules, buffers, and the step's plan. No host reads."""

from dataclasses import dataclass, field
from functools import cache

import torch
import triton
from torch import Tensor

from specdec.kernels.tree_attention.fused import (
    tree_attention_combine_kernel,
    tree_attention_plan_kernel,
    tree_attention_split_kernel,
)

MAX_HEAD_SIZE = 256
FAST_CHUNK = 256  # smallest chunk of slots: below it, merging costs more than the split gains
FIXED_CHUNK = 1024  # the chunk of batch-invariant runs
BLOCKS_PER_PROCESSOR = 2


@dataclass(frozen=True, slots=True)
class Config:
    """Tile sizes of one launch; the same for every step of a (rows, batch) bucket."""

    block_m: int  # packed rows of a tile
    block_n: int  # slots of a tile, at most 64: one word of visibility
    warps: int
    stages: int  # 2 * buffers - 1 for paged pools: the page lookup is a stage of its own
    chunk: int
    fixed: bool


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Work items of one step under one window, on the device."""

    items: Tensor  # [B + 1] int32, first item of every sequence
    chunk: Tensor  # [1] int32, slots of a chunk
    bound: int  # no more items than this, whatever the lengths


@dataclass(slots=True)
class Workspace:
    """Buffers that stay where they are, and plans shared by the layers of a step.

    Hold one per CUDA graph. Call `begin` when lengths, rows or trees change, that is, once a step.
    """

    _buffers: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _plans: dict[tuple[object, ...], DevicePlan] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget the plans of the last step; the buffers stay."""
        self._plans.clear()

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The same memory for the same name, shape, dtype and device. Its contents are whatever was there."""
        key = (name, shape, dtype, device)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(shape, dtype=dtype, device=device)
        return self._buffers[key]


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a small number where the interpreter stands in for one."""
    if device.type != "cuda":
        return 8
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def has_warpgroup_mma(device: torch.device) -> bool:
    """Hopper and datacenter Blackwell keep accumulators of 64-row tiles in few enough registers for 4 warps."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


def choose_config(
    dtype: torch.dtype,
    head_size: int,
    group: int,
    rows: int,
    batch: int,
    page: int,
    fixed: bool,
    extras: bool = False,
    warpgroups: bool = True,
) -> Config:
    """Tile sizes from what the host knows.

    Args:
        dtype: of the queries.
        head_size: the larger of key and value head size.
        group: query heads per KV head.
        rows, batch: R and B; their quotient stands for the rows of a tree.
        page: slots of a page.
        fixed: one class of tiles whatever the batch and the tree, so that a row's bits depend on neither.
        extras: soft-capping, or a window that may be shorter than a tree's path: their registers need more warps.
        warpgroups: from `has_warpgroup_mma`.
    """
    packed = 64 if fixed else group * -(-rows // max(batch, 1))
    wide = head_size > 128
    chunk = FIXED_CHUNK if fixed else FAST_CHUNK
    if dtype == torch.float32:
        return Config(16 if packed <= 16 else 32, 32, 4, 2, chunk, fixed)
    block_n = 32 if wide else 64
    if packed <= 16:
        short = page % block_n != 0  # a page lookup per slot, whose registers need shorter tiles
        return Config(16, 32 if short else block_n, 4, 3 if wide else 5, chunk, fixed)
    if packed <= 32:
        masked = head_size & (head_size - 1) != 0  # loads under a mask, whose registers need more warps as well
        return Config(32, block_n, 8 if masked or extras else 4, 3, chunk, fixed)
    if packed < 256 or wide or extras or not warpgroups:
        return Config(64, block_n, 8 if wide or extras or not warpgroups else 4, 3, chunk, fixed)
    return Config(128, block_n, 8, 3, chunk, fixed)


def make_device_plan(
    row_starts: Tensor,  # [B + 1]
    context_lens: Tensor,  # [B]
    tree_sizes: Tensor,  # [B]
    *,
    rows: int,
    heads: int,
    group: int,
    slots: int,
    window: int,
    config: Config,
    workspace: Workspace,
) -> DevicePlan:
    """Lay out the work items of a step: one small launch, nothing read back.

    Args:
        row_starts, context_lens, tree_sizes: as in `tree_attention`.
        rows: R.
        heads, group: KV heads, and query heads per KV head.
        slots: slots that a sequence's table can address, which bounds the items of fixed chunks.
        window: sliding window, 0 for none.
        config: tile sizes.
        workspace: where the plan is kept; `begin` forgets it.
    """
    device, batch = context_lens.device, context_lens.shape[0]
    key = (window, rows, heads, group, slots, config)
    if key in workspace._plans:
        return workspace._plans[key]
    blocks = triton.cdiv(rows * group, config.block_m) + batch  # row blocks of all sequences, at most
    target = max(1, BLOCKS_PER_PROCESSOR * processors(device) // heads)
    bound = triton.cdiv(slots, config.chunk) * blocks if config.fixed else target + blocks
    items = workspace.buffer(f"items {key}", (batch + 1,), torch.int32, device)
    chunk = workspace.buffer(f"chunk {key}", (1,), torch.int32, device)
    tree_attention_plan_kernel[(1,)](
        row_starts,
        context_lens,
        tree_sizes,
        items,
        chunk,
        batch,
        target,
        window,
        G=group,
        CHUNK=config.chunk,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_B=triton.next_power_of_2(batch),
        FIXED=config.fixed,
        WINDOW=window > 0,
    )
    workspace._plans[key] = DevicePlan(items, chunk, bound)
    return workspace._plans[key]


def tree_attention_fused(
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
    fixed_chunks: bool = False,
    workspace: Workspace | None = None,
    config: Config | None = None,
) -> Tensor:
    """See `specdec.kernels.tree_attention.tree_attention`; `config` overrides the rules of `choose_config`.

    Raises:
        ValueError: head sizes over 256, float64, or a last dimension that is not contiguous.
    """
    rows, q_heads, dim = q.shape
    heads, page = k_pool.shape[1:3]
    value_dim = v_pool.shape[3]
    group, batch, device = q_heads // heads, context_lens.shape[0], q.device
    if max(dim, value_dim) > MAX_HEAD_SIZE:
        raise ValueError(
            f"backend 'triton' takes head sizes up to {MAX_HEAD_SIZE}, got {dim} and {value_dim}; use 'sdpa'"
        )
    if q.dtype == torch.float64:
        raise ValueError("backend 'triton' has no float64; use 'packed' or 'naive'")
    for name, tensor in (
        ("q", q),
        ("k_pool", k_pool),
        ("v_pool", v_pool),
        ("block_table", block_table),
        ("words", words),
    ):
        if tensor is not None and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"{name} must be contiguous in its last dimension, got strides {tensor.stride()}")
    out = torch.empty(rows, q_heads, value_dim, dtype=q.dtype, device=device)
    if rows == 0:
        return out
    if batch == 0:
        return out.zero_()
    workspace = workspace or Workspace()
    node_words = 1 if words is None else words.shape[1]
    node_window = words is not None and 0 < window < 64 * node_words
    config = config or choose_config(
        q.dtype, max(dim, value_dim), group, rows, batch, page, fixed_chunks, softcap > 0 or node_window,
        has_warpgroup_mma(device),
    )  # fmt: skip
    plan = make_device_plan(
        row_starts, context_lens, tree_sizes, rows=rows, heads=heads, group=group, slots=block_table.shape[1] * page,
        window=window, config=config, workspace=workspace,
    )  # fmt: skip
    block_m = config.block_m
    part = workspace.buffer("part", (plan.bound, heads, block_m, value_dim), torch.float32, device)
    lse = workspace.buffer("lse", (plan.bound, heads, block_m), torch.float32, device)
    log2_batch = batch.bit_length()
    shared = {
        "G": group, "DV": value_dim, "BLOCK_M": block_m, "BLOCK_DV": max(16, triton.next_power_of_2(value_dim)),
        "LOG2_B": log2_batch, "SINKS": sinks is not None,
    }  # fmt: skip
    placeholder = row_starts  # a pointer for arguments that are not read
    tree_attention_split_kernel[(plan.bound, heads)](
        q, k_pool, v_pool, out, part, lse, placeholder if words is None else words, block_table, row_starts,
        context_lens, tree_sizes, plan.items, plan.chunk, placeholder if sinks is None else sinks,
        batch, window, scale, softcap or 1.0,
        q.stride(0), q.stride(1), k_pool.stride(0), k_pool.stride(1), k_pool.stride(2),
        v_pool.stride(0), v_pool.stride(1), v_pool.stride(2), out.stride(0), out.stride(1), block_table.stride(0),
        0 if words is None else words.stride(0),
        W=node_words, BLOCK_W=triton.next_power_of_2(node_words), D=dim, PAGE=page,
        BLOCK_N=config.block_n, BLOCK_D=max(16, triton.next_power_of_2(dim)),
        ALIGN=config.chunk if config.fixed else config.block_n,
        CAUSAL=words is None, WINDOW=window > 0, NODE_WINDOW=node_window,
        SOFTCAP=softcap > 0, PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config.warps, num_stages=config.stages, **shared,
    )  # fmt: skip
    tree_attention_combine_kernel[(rows, q_heads)](
        out, part, lse, row_starts, plan.items, placeholder if sinks is None else sinks, batch, heads,
        out.stride(0), out.stride(1), **shared, num_warps=1 if value_dim <= 64 else 2,
    )  # fmt: skip
    return out
