"""Acceptance in one launch: a bitset test, no walk over children."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.common.fused import popcount


@triton.jit
def accept_kernel(
    tokens,  # [B, N]
    parents,  # [B, N]
    sizes,  # [B]
    words,  # [B, N, W]
    targets,  # [B, N]
    path,  # [B, N] out
    num_accepted,  # [B] out
    next_token,  # [B] out
    N,
    W,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    inside = j < N
    live = j < tl.minimum(tl.load(sizes + b), N)
    parent = tl.load(parents + b * N + j, mask=live, other=-1).to(tl.int32)
    wanted = tl.load(targets + b * N + parent, mask=live & (parent >= 0), other=0)
    token = tl.load(tokens + b * N + j, mask=live, other=0)
    good = live & tl.where(parent < 0, j == 0, wanted == token)  # a second root is nobody's continuation
    mine = tl.load(
        words + (b * N + j)[:, None] * W + w[None, :], mask=live[:, None] & (w < W)[None, :], other=0
    )  # [BLOCK_N, BLOCK_W]
    one = tl.full([BLOCK_N, BLOCK_W], 1, tl.int64) << (j & 63).to(tl.int64)[:, None]
    bit = tl.where((j >> 6)[:, None] == w[None, :], one, 0)  # [BLOCK_N, BLOCK_W]
    mask = tl.sum(tl.where(good[:, None], bit, 0), 0)  # [BLOCK_W]; distinct bits: the sum is their union
    missing = tl.sum(((mine & (mask[None, :] ^ -1)) != 0).to(tl.int32), 1)
    accepted = live & (missing == 0)
    length = tl.sum(popcount(mine), 1)  # [BLOCK_N] nodes on the way from the root
    key = tl.where(accepted, length * BLOCK_N + (BLOCK_N - 1 - j), -1)  # deepest, then lowest
    top = tl.max(key, 0)
    best = tl.where(top >= 0, BLOCK_N - 1 - top % BLOCK_N, 0)
    best_words = tl.load(words + (b * N + best) * W + (j >> 6), mask=live & (top >= 0), other=0)  # [BLOCK_N]
    on_path = live & (((best_words >> (j & 63).to(tl.int64)) & 1) != 0)
    rank = tl.cumsum(on_path.to(tl.int32), 0) - 1
    count = tl.sum(on_path.to(tl.int32), 0)
    tl.store(path + b * N + j, tl.full([BLOCK_N], -1, tl.int64), mask=inside & (j >= count))
    tl.store(path + b * N + rank, j.to(tl.int64), mask=on_path)  # node order is path order
    tl.store(num_accepted + b, count)
    tl.store(next_token + b, tl.load(targets + b * N + best))


def accept_fused(
    tokens: Tensor, parents: Tensor, sizes: Tensor, words: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `specdec.kernels.accept.accept`. One program a tree."""
    batch, nodes = tokens.shape
    path = torch.empty(batch, nodes, dtype=torch.int64, device=tokens.device)
    num_accepted = torch.empty(batch, dtype=torch.int32, device=tokens.device)
    next_token = torch.empty(batch, dtype=torch.int64, device=tokens.device)
    accept_kernel[(batch,)](
        tokens.contiguous(),
        parents.contiguous(),
        sizes,
        words.contiguous(),
        targets.contiguous(),
        path,
        num_accepted,
        next_token,
        nodes,
        words.shape[2],
        BLOCK_N=triton.next_power_of_2(nodes),
        BLOCK_W=triton.next_power_of_2(words.shape[2]),
    )
    return path, num_accepted, next_token
