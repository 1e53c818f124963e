"""Write the keys and values of new rows into their slots: one launch for both pools."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _write_row(
    rows, pool, row, page, place, stride_row, stride_head, stride_page, stride_pool_head, stride_slot, h, d, mask
):
    data = tl.load(rows + row * stride_row + h[:, None] * stride_head + d[None, :], mask=mask)  # [heads, size]
    out = pool + page * stride_page + place * stride_slot + h[:, None] * stride_pool_head + d[None, :]
    tl.store(out, data.to(pool.dtype.element_ty), mask=mask)


@triton.jit
def kv_write_kernel(
    keys,  # [R, heads, D]
    values,  # [R, heads, DV]
    k_pool,  # [pages, heads, PAGE, D]
    v_pool,  # [pages, heads, PAGE, DV]
    block_table,  # [B, P]
    sequences,  # [R]
    slots,  # [R]
    stride_kr,
    stride_kh,
    stride_vr,
    stride_vh,
    stride_kp_page,
    stride_kp_head,
    stride_kp_slot,
    stride_vp_page,
    stride_vp_head,
    stride_vp_slot,
    stride_table,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sequence = tl.load(sequences + row)
    if sequence < 0:
        return
    slot = tl.load(slots + row)
    page = tl.load(block_table + sequence * stride_table + slot // PAGE).to(tl.int64)
    h = tl.arange(0, BLOCK_H).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    k_mask = (h < HEADS)[:, None] & (d < D)[None, :]
    v_mask = (h < HEADS)[:, None] & (dv < DV)[None, :]
    place = slot % PAGE
    _write_row(
        keys,
        k_pool,
        row,
        page,
        place,
        stride_kr,
        stride_kh,
        stride_kp_page,
        stride_kp_head,
        stride_kp_slot,
        h,
        d,
        k_mask,
    )
    _write_row(
        values,
        v_pool,
        row,
        page,
        place,
        stride_vr,
        stride_vh,
        stride_vp_page,
        stride_vp_head,
        stride_vp_slot,
        h,
        dv,
        v_mask,
    )


def kv_write_fused(
    keys: Tensor, values: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: Tensor, sequences: Tensor, slots: Tensor
) -> None:
    """See `specdec.kernels.kv_write.kv_write`. Reads nothing to the host."""
    rows, heads, size = keys.shape
    if rows == 0:
        return
    value_size = values.shape[2]
    kv_write_kernel[(rows,)](
        keys,
        values,
        k_pool,
        v_pool,
        block_table,
        sequences,
        slots,
        *keys.stride()[:2],
        *values.stride()[:2],
        *k_pool.stride()[:3],
        *v_pool.stride()[:3],
        block_table.stride(0),
        HEADS=heads,
        D=size,
        DV=value_size,
        PAGE=k_pool.shape[2],
        BLOCK_H=triton.next_power_of_2(heads),
        BLOCK_D=triton.next_power_of_2(size),
        BLOCK_DV=triton.next_power_of_2(value_size),
    )
