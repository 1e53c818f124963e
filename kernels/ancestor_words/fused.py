"""Ancestor words in one launch: every node of a tree climbs one parent per round until all stand above their root."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def ancestor_words_kernel(
    parents,  # [B, N]
    sizes,  # [B]
    words,  # [B, N, W] out
    depths,  # [B, N] out
    stride_parents,
    N,
    W,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    b = tl.program_id(0)
    j = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    current = tl.where(j < tl.minimum(tl.load(sizes + b), N), j, -1)  # [BLOCK_N] where each node stands
    depth = tl.full([BLOCK_N], -1, tl.int32)
    seen = tl.zeros([BLOCK_N, BLOCK_W], tl.int64)
    rounds = 0
    while (tl.max(current, 0) >= 0) & (rounds < N):  # a parent that is no earlier node must not hang the device
        rounds += 1
        climbing = current >= 0
        here = climbing[:, None] & ((current >> 6)[:, None] == w[None, :])
        bit = tl.full([BLOCK_N, BLOCK_W], 1, tl.int64) << (current & 63).to(tl.int64)[:, None]
        seen = tl.where(here, seen | bit, seen)
        depth += climbing.to(tl.int32)
        current = tl.load(parents + b.to(tl.int64) * stride_parents + current, mask=climbing, other=-1).to(tl.int32)
    place = b.to(tl.int64) * N + j
    inside = j < N
    tl.store(words + place[:, None] * W + w[None, :], seen, mask=inside[:, None] & (w < W)[None, :])
    tl.store(depths + place, tl.maximum(depth, 0), mask=inside)


def ancestor_words_fused(parents: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """See `specdec.kernels.ancestor_words.ancestor_words`. One program a tree."""
    batch, nodes = parents.shape
    node_words = triton.cdiv(nodes, 64)
    words = torch.empty(batch, nodes, node_words, dtype=torch.int64, device=parents.device)
    depths = torch.empty(batch, nodes, dtype=torch.int32, device=parents.device)
    ancestor_words_kernel[(batch,)](
        parents,
        sizes,
        words,
        depths,
        parents.stride(0),
        nodes,
        node_words,
        BLOCK_N=triton.next_power_of_2(nodes),
        BLOCK_W=triton.next_power_of_2(node_words),
    )
    return words, depths
