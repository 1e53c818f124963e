"""Who is timed: a name, when it applies, and how it is prepared. Whatever depends on lengths is prepared, not timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from specdec.experiments.bench.grid import Cell
from specdec.experiments.bench.inputs import Inputs
from specdec.experiments.bench.sdpa import batched, dense_mask, make_packed_sdpa, make_sdpa
from specdec.kernels.tree_attention import cpp, flash_attn, flex, packed, tree_attention, varlen
from specdec.kernels.tree_attention.chains import fits

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

    def attend(k: Tensor, v: Tensor) -> Tensor:
        if workspace and i.cell.plan:
            workspace.begin()  # as before the first layer of a step
        return tree_attention(
            i.q, k, v, i.block_table, i.row_starts, i.context_lens, i.tree_sizes, i.words,
            backend=backend, workspace=workspace,  # type: ignore[arg-type]
        )  # fmt: skip

    return attend


def _with_plan(inputs: Inputs, attend: Callable[..., Tensor]) -> Attend:
    plan, scale = inputs.plan(), inputs.cell.dim**-0.5
    return lambda k, v: attend(inputs.q, k, v, plan, scale=scale)


def _flex(inputs: Inputs) -> Attend:
    torch._dynamo.reset()  # it compiles one function for so many shapes only, and then no longer
    mask = flex.make_mask(inputs.plan())
    q, scale, attention = batched(inputs), inputs.cell.dim**-0.5, flex.compiled(inputs.q.device)

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
    return cell.kv_dtype == cell.dtype and not cell.plan


def _chain(cell: Cell, device: str) -> bool:
    here = cell.chain and device == "cuda" and _plain(cell, device)
    return here and fits(torch.empty(1, 1, cell.dim, dtype=getattr(torch, cell.dtype)), torch.empty(1, 1, 1, cell.dim))


def _varlen_reads_in_place() -> bool:
    """Where it would copy keys first, its time would be the copy's."""
    return varlen.available(torch.device("cuda")) and varlen.parameters() >= {"block_table", "enable_gqa"}


METHODS: list[Method] = [
    Method("triton", partial(_on, "cuda"), lambda i: _tree_attention(i, "triton")),
    Method("cpp", lambda c, d: d == "cpu" and cpp.available(), lambda i: _with_plan(i, cpp.attend)),
    Method("packed", partial(_on, "cpu"), lambda i: _with_plan(i, packed.attend)),
    Method("sdpa", _plain, make_sdpa),
    Method("sdpa_packed", _plain, make_packed_sdpa),
    Method("flex", lambda c, d: c.flex and _plain(c, d), _flex),
    Method(
        "naive", lambda c, d: _plain(c, d) and max(c.contexts) <= NAIVE_SLOTS and c.batch == 1,
        lambda i: _tree_attention(i, "naive"),
    ),
    Method(
        "varlen", lambda c, d: _chain(c, d) and _varlen_reads_in_place(),
        lambda i: _with_plan(i, varlen.attend),
    ),
    Method(
        "flash_attn", lambda c, d: _chain(c, d) and flash_attn.installed(),
        lambda i: _with_plan(i, flash_attn.attend),
    ),
    Method(
        "flashinfer", lambda c, d: d == "cuda" and _plain(c, d) and importlib.util.find_spec("flashinfer") is not None,
        _flashinfer,
    ),
]  # fmt: skip
