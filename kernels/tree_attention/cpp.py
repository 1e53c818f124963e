"""Tree attention for CPUs in C++ (rows.cpp): the trees of all sequences in one call, which may write new rows first.

It is compiled when it is first used, in two seconds, and kept on disk. What it cannot do (soft-capping, other dtypes,
odd head sizes) or is no match for (sequences of many rows: matrix instructions win) goes to `packed`.
"""

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.kernels.common import native
from specdec.kernels.tree_attention import packed
from specdec.kernels.tree_attention.plan import Plan, Span

SOURCE = Path(__file__).with_name("rows.cpp")
_LANES = 16  # head sizes are a multiple of it
_NAMES = {torch.float32: "rows_float32", torch.bfloat16: "rows_bfloat16"}
_MATMUL_ROWS = 64  # packed rows of a sequence from which on `packed` is faster


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class _Step(ctypes.Structure):
    """As in rows.cpp."""

    _fields_ = _fields(ctypes.c_void_p, "spans tables words") + _fields(ctypes.c_int64, "count table word threads")


class _Layer(ctypes.Structure):
    """As in rows.cpp."""

    _fields_ = [
        *_fields(ctypes.c_void_p, "q new_k new_v keys values out sinks written"),
        *_fields(ctypes.c_int64, "written_rows q_row q_head k_row k_head v_row v_head"),
        *_fields(ctypes.c_int64, "key_page key_head key_slot value_page value_head value_slot"),
        *_fields(ctypes.c_int64, "heads group dim width page window"),
        ("scale", ctypes.c_double),
    ]


class _Call(NamedTuple):
    """A step as the layers share it.

    Attributes:
        step: what C++ reads.
        held: tensors whose memory it reads.
        others: spans that are left to `packed`.
    """

    step: _Step
    held: tuple[Tensor | None, ...]
    others: tuple[Span, ...]


def available() -> bool:
    """Whether it is there, or can be made."""
    return native.available(SOURCE)


def require() -> None:
    """Raises:
    ValueError: there is no compiler, or it cannot compile it.
    """
    native.load(SOURCE)


def can(q: Tensor, k_pool: Tensor, v_pool: Tensor, softcap: float) -> bool:
    """Whether rows.cpp can do it."""
    sizes = q.shape[2] % _LANES == 0 and v_pool.shape[3] % _LANES == 0 and k_pool.stride(3) == v_pool.stride(3) == 1
    known = q.dtype in _NAMES and k_pool.dtype == v_pool.dtype == q.dtype
    return known and sizes and not softcap and not (q.requires_grad and torch.is_grad_enabled())


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
    new_k: Tensor | None = None,  # [R, Hkv, D]
    new_v: Tensor | None = None,  # [R, Hkv, Dv]
    written: Tensor | None = None,  # [W, 3] int64
) -> Tensor:
    """Attention of one layer. Unchecked: the arguments must fit the plan.

    Args:
        q, k_pool, v_pool, plan, scale, window, softcap, sinks: as for `packed.attend`.
        fixed_chunks: every row goes through rows.cpp, which gives it bits of its own: slow for prompts.
        new_k, new_v, written: rows that are put into the pools first: `written` says (row, page, place in it).

    Returns:
        `[R, Hq, Dv]` in q's dtype.
    """
    if not can(q, k_pool, v_pool, softcap):
        if written is not None and new_k is not None and new_v is not None:
            write(k_pool, v_pool, new_k, new_v, written)
        settings: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
        return packed.attend(q, k_pool, v_pool, plan, fixed_chunks=fixed_chunks, **settings)
    rows, q_heads, dim = q.shape
    heads, width = k_pool.shape[1], v_pool.shape[3]
    out = q.new_empty(rows, q_heads, width)  # [R, Hq, Dv]
    if not plan.covered:
        out.zero_()
    call = _call(plan, 0 if fixed_chunks else -(-_MATMUL_ROWS * heads // q_heads))
    q = q if q.stride(2) == 1 else q.contiguous()
    layer = _Layer(
        q=q.data_ptr(), keys=k_pool.data_ptr(), values=v_pool.data_ptr(), out=out.data_ptr(),
        q_row=q.stride(0), q_head=q.stride(1),
        key_page=k_pool.stride(0), key_head=k_pool.stride(1), key_slot=k_pool.stride(2),
        value_page=v_pool.stride(0), value_head=v_pool.stride(1), value_slot=v_pool.stride(2),
        heads=heads, group=q_heads // heads, dim=dim, width=width, page=k_pool.shape[2], window=window, scale=scale,
    )  # fmt: skip
    if written is not None and new_k is not None and new_v is not None:
        new_k, new_v = (x if x.stride(2) == 1 else x.contiguous() for x in (new_k.to(q.dtype), new_v.to(q.dtype)))
        layer.written, layer.written_rows = written.data_ptr(), len(written)
        layer.new_k, layer.k_row, layer.k_head = new_k.data_ptr(), new_k.stride(0), new_k.stride(1)
        layer.new_v, layer.v_row, layer.v_head = new_v.data_ptr(), new_v.stride(0), new_v.stride(1)
    if sinks is not None:
        sinks = sinks.float().contiguous()
        layer.sinks = sinks.data_ptr()
    getattr(native.load(SOURCE), _NAMES[q.dtype])(ctypes.byref(call.step), ctypes.byref(layer))
    for span in call.others:
        packed.attend_span(out, q, k_pool, v_pool, plan, span, scale, window, sinks=sinks)
    return out


def write(k_pool: Tensor, v_pool: Tensor, new_k: Tensor, new_v: Tensor, written: Tensor) -> None:
    """New rows into the pools, by torch; see `attend`."""
    row, page, place = written.unbind(1)
    k_pool[page, :, place], v_pool[page, :, place] = new_k[row].to(k_pool.dtype), new_v[row].to(v_pool.dtype)


def _call(plan: Plan, most: int) -> _Call:
    """Made by the first layer of a step, for all with as many heads: sequences of `most` rows and more are left to
    `packed`; 0 for none."""
    key = most, torch.get_num_threads()
    found: _Call | None = plan.calls.get(key)
    if found is None:
        mine = [span for span in plan.spans if not most or span.end - span.first < most]
        others = tuple(span for span in plan.spans if most and span.end - span.first >= most)
        spans = torch.tensor(mine, dtype=torch.int64).view(-1, len(Span._fields))
        table = plan.block_table.to(torch.int32).contiguous()
        words = None if plan.words is None else plan.words.contiguous()
        step = _Step(
            spans=spans.data_ptr(), tables=table.data_ptr(), words=None if words is None else words.data_ptr(),
            count=len(mine), table=table.shape[1], word=0 if words is None else words.shape[1], threads=key[1],
        )  # fmt: skip
        found = plan.calls[key] = _Call(step, (spans, table, words), others)
    return found
