"""Who is timed: a name, when it applies, and how it is prepared. Whatever depends on lengths is prepared, not timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from specdec.experiments.bench.grid import Cell
from specdec.experiments.bench.inputs import Inputs
from specdec.kernels.tree_attention import flash_attn, flex, packed, tree_attention, varlen
from specdec.kernels.tree_attention.chains import fits, make_chains
from specdec.kernels.tree_attention.naive import visible_nodes

NAIVE_SLOTS = 1024  # it exists to be read
Attend = Callable[[Tensor, Tensor], Tensor]  # keys and values of one pool -> [R, Hq, D]


@dataclass(frozen=True)
class Method:
    """Applies to a cell on a device type, and is made for inputs."""

    name: str
    applies: Callable[[Cell, str], bool]
    make: Callable[[Inputs], Attend]


def methods(cell: Cell, device: str) -> list[Method]:
    """Ours first, then the rivals that apply."""
    return [method for method in METHODS if method.applies(cell, device)]


def _tree_attention(inputs: Inputs, backend: str) -> Attend:
    i, workspace = inputs, None
    if backend == "triton":
        from specdec.kernels.tree_attention.launch import Workspace

        workspace = Workspace()
    return lambda k, v: tree_attention(
        i.q, k, v, i.block_table, i.row_starts, i.context_lens, i.tree_sizes, i.words,
        backend=backend, workspace=workspace,  # type: ignore[arg-type]
    )  # fmt: skip


def _with_plan(inputs: Inputs, attend: Callable[..., Tensor]) -> Attend:
    plan, scale = inputs.plan(), inputs.cell.dim**-0.5
    return lambda k, v: attend(inputs.q, k, v, plan, scale=scale)


def _with_chains(inputs: Inputs, attend: Callable[..., Tensor]) -> Attend:
    plan = inputs.plan()
    return _with_plan(inputs, partial(attend, chains=make_chains(plan)))


def _batched(inputs: Inputs) -> Tensor:
    """q `[R, Hq, D]` -> `[B, Hq, N, D]`."""
    return inputs.q.view(inputs.cell.batch, inputs.cell.nodes, *inputs.q.shape[1:]).transpose(1, 2)


def dense_mask(inputs: Inputs) -> Tensor:
    """`[B, 1, N, S]` bool, S the longest sequence's slots."""
    cell = inputs.cell
    longest = max(cell.contexts) + cell.nodes
    mask = torch.zeros(cell.batch, 1, cell.nodes, longest, dtype=torch.bool, device=inputs.q.device)
    for b, context in enumerate(cell.contexts):
        rows = slice(b * cell.nodes, (b + 1) * cell.nodes)
        words = None if inputs.words is None else inputs.words[rows]
        mask[b, :, :, :context] = True
        mask[b, :, :, context : context + cell.nodes] = visible_nodes(words, cell.nodes, cell.nodes).to(mask.device)
    return mask


def _sdpa(inputs: Inputs) -> Attend:
    q, mask = _batched(inputs), dense_mask(inputs)
    longest, grouped = mask.shape[3], inputs.cell.heads != inputs.cell.kv_heads

    def attend(k: Tensor, v: Tensor) -> Tensor:
        keys, values = k[:, :, :longest], v[:, :, :longest]
        done = scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=grouped)
        return done.transpose(1, 2).flatten(0, 1)

    return attend


def _flex(inputs: Inputs) -> Attend:
    torch._dynamo.reset()  # it compiles one function for so many shapes only, and then no longer
    mask = flex.make_mask(inputs.plan())
    q, scale, attention = _batched(inputs), inputs.cell.dim**-0.5, flex.compiled(inputs.q.device)

    def attend(k: Tensor, v: Tensor) -> Tensor:
        keys, values = k[:, :, : mask.slots], v[:, :, : mask.slots]
        done = flex.attend_dense(q, keys, values, mask, scale=scale, attention=attention)
        return done.transpose(1, 2).flatten(0, 1)

    return attend


def _flashinfer(inputs: Inputs) -> Attend:
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    i, cell = inputs, inputs.cell
    wrapper = BatchPrefillWithPagedKVCacheWrapper(torch.empty(256 << 20, dtype=torch.uint8, device=i.q.device), "HND")
    seen = None
    if not cell.chain:
        mask = dense_mask(i)
        seen = torch.cat([mask[b, 0, :, : c + cell.nodes].flatten() for b, c in enumerate(cell.contexts)])
    pages = torch.arange(cell.batch + 1, dtype=torch.int32, device=i.q.device)
    wrapper.plan(
        i.row_starts, pages, pages[:-1], i.context_lens + i.tree_sizes, cell.heads, cell.kv_heads, cell.dim,
        i.pools[0][0].shape[2], custom_mask=seen, causal=cell.chain, q_data_type=i.q.dtype,
    )  # fmt: skip
    return lambda k, v: wrapper.run(i.q, (k, v))


def _on(device: str, cell: Cell, actual: str) -> bool:
    return device == actual


def _plain(cell: Cell, device: str) -> bool:
    return cell.kv_dtype == cell.dtype


def _chain(cell: Cell, device: str) -> bool:
    here = cell.chain and device == "cuda" and _plain(cell, device)
    return here and fits(torch.empty(1, 1, cell.dim, dtype=getattr(torch, cell.dtype)), torch.empty(1, 1, 1, cell.dim))


def _varlen_reads_in_place() -> bool:
    """Where it would copy keys first, its time would be the copy's."""
    return varlen.available(torch.device("cuda")) and varlen.parameters() >= {"block_table", "enable_gqa"}


METHODS: list[Method] = [
    Method("triton", partial(_on, "cuda"), lambda i: _tree_attention(i, "triton")),
    Method("packed", partial(_on, "cpu"), lambda i: _with_plan(i, packed.attend)),
    Method("sdpa", _plain, _sdpa),
    Method("flex", lambda c, d: c.flex and _plain(c, d), _flex),
    Method(
        "naive", lambda c, d: _plain(c, d) and max(c.contexts) <= NAIVE_SLOTS and c.batch == 1,
        lambda i: _tree_attention(i, "naive"),
    ),
    Method(
        "varlen", lambda c, d: _chain(c, d) and _varlen_reads_in_place(),
        lambda i: _with_chains(i, varlen.attend),
    ),
    Method(
        "flash_attn", lambda c, d: _chain(c, d) and flash_attn.installed(),
        lambda i: _with_chains(i, flash_attn.attend),
    ),
    Method(
        "flashinfer", lambda c, d: d == "cuda" and _plain(c, d) and importlib.util.find_spec("flashinfer") is not None,
        _flashinfer,
    ),
]  # fmt: skip
