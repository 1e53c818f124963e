"""Write the keys and values of new rows into their slots with one indexed write a pool."""

from torch import Tensor


def kv_write_naive(
    keys: Tensor, values: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: Tensor, sequences: Tensor, slots: Tensor
) -> None:
    """See `specdec.kernels.kv_write.kv_write`. Picking the rows that are no padding reads their number to the host."""
    page = k_pool.shape[2]
    live = (sequences >= 0).nonzero()[:, 0]
    slot = slots[live].long()  # [live]
    pages = block_table[sequences[live].long(), slot // page].long()
    k_pool[pages, :, slot % page] = keys[live].to(k_pool.dtype)
    v_pool[pages, :, slot % page] = values[live].to(v_pool.dtype)
