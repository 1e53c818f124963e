"""`specdec::tree_attention`: writes a pass's new rows into the KV arena in place and attends, out of a graph's sight.

Importing this module registers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.kernels.tree_attention import HOST, Plan, cpp, make_plan, packed, tree_attention

# Not `torch.library.custom_op`: with so many tensors its wrapper takes 110 us a call and layer, this way takes 5.
_library = torch.library.Library("specdec", "FRAGMENT")
_library.define(
    "tree_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, int key_index, int value_index, "
    "Tensor block_table, Tensor row_starts, Tensor context_lens, Tensor tree_sizes, Tensor words, Tensor counts, "
    "Tensor places, int layer, float scale, int window, float softcap, Tensor? sinks, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True, slots=True)
class _Step:
    """What the layers of one pass share. `address` of context_lens says which pass it is.

    Attributes:
        written: `[W, 3]` int64, where new rows go: (row, page, place in it).
    """

    address: int
    plan: Plan | None
    written: Tensor


# Made by layer 0 of every pass for the layers after it: the host reads lengths and words once a pass, not once a layer.
_step: list[_Step] = []


def _attend(
    q: Tensor,  # [1, Hq, R, D] with R = B * N
    k: Tensor,  # [1, Hkv, R, D], new rows
    v: Tensor,  # [1, Hkv, R, Dv]
    keys: Tensor,  # [layers, pages, Hkv, page, D], written in place
    values: Tensor,  # [layers, pages, Hkv, page, Dv], written in place
    key_index: int,
    value_index: int,
    block_table: Tensor,  # [B, P] int32
    row_starts: Tensor,  # [B + 1] int32
    context_lens: Tensor,  # [B] int32
    tree_sizes: Tensor,  # [B] int32, nodes in the scratch places, those of earlier passes included
    words: Tensor,  # [R, W] int64
    counts: Tensor,  # [B] int32, live nodes of this pass
    places: Tensor,  # [B] int32, where this pass's first node of each sequence goes
    layer: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None,  # [Hq]
    backend: str,
) -> Tensor:
    """Write the live rows' KV, then attend: `[1, R, Hq, Dv]`."""
    step = _step[0] if _step else None
    if layer == 0 or step is None or step.address != context_lens.data_ptr():
        on_host = backend in HOST
        plan = make_plan(block_table, row_starts, context_lens, tree_sizes, words) if on_host else None
        written = _written(block_table, keys.shape[3], counts, places, words.shape[0])
        step = _Step(context_lens.data_ptr(), plan, written)
        _step[:] = [step]
    k_pool, v_pool = keys[key_index], values[value_index]  # [pages, Hkv, page, D]
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [R, heads, size]
    if backend == "cpp" and step.plan is not None:
        output = cpp.attend(
            q, k_pool, v_pool, step.plan, scale=scale, window=window, softcap=softcap, sinks=sinks,
            new_k=k, new_v=v, written=step.written,
        )  # fmt: skip
        return output.contiguous()[None]  # where it was left to `packed`
    cpp.write(k_pool, v_pool, k, v, step.written)
    if step.plan is not None:
        output = packed.attend(q, k_pool, v_pool, step.plan, scale=scale, window=window, softcap=softcap, sinks=sinks)
    else:
        output = tree_attention(
            q, k_pool, v_pool, block_table, row_starts, context_lens, tree_sizes, words,
            scale=scale, window=window, softcap=softcap, sinks=sinks, backend=backend,  # type: ignore[arg-type]
        )  # fmt: skip
    return output.contiguous()[None]


def _written(block_table: Tensor, page: int, counts: Tensor, places: Tensor, rows: int) -> Tensor:
    """Where the live ones of `[B, N]` rows go: `[W, 3]` int64 (row, page, place in it)."""
    nodes = rows // len(counts)
    found = []
    for b, (count, first, table) in enumerate(zip(counts.tolist(), places.tolist(), block_table.tolist(), strict=True)):
        for j in range(count):
            number, place = divmod(first + j, page)
            found.append((b * nodes + j, table[number], place))
    return torch.tensor(found, dtype=torch.int64).view(-1, 3)


def _attend_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(1, q.shape[2], q.shape[1], v.shape[3])


_library.impl("tree_attention", _attend, "CompositeExplicitAutograd")
torch.library.register_fake("specdec::tree_attention", _attend_fake, lib=_library)


def forget_step() -> None:
    """The pass is over."""
    _step.clear()
