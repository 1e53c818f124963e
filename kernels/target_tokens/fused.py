"""The target's own token at every node in one launch: a program a row, which finds its own cuts."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.common.filters.fused import best_token, row_ends, row_filter
from specdec.kernels.common.fused import noise_key

FEW_ROWS = 256  # up to so many rows a multiprocessor holds one or two: wide blocks keep more loads in flight


def choose_block(rows: int, vocab: int) -> tuple[int, int]:
    """Tokens read at a time, and warps. Both choices fit the registers; neither is measured yet."""
    return (4096, 16) if rows <= FEW_ROWS and vocab > 1024 else (1024, 8)


@triton.jit
def target_tokens_kernel(
    logits,  # [B, N, V]
    positions,  # [B]
    depths,  # [B, N]
    sizes,  # [B]
    seeds,  # [2, B]
    temperature,  # [B]
    top_k,  # [B]
    top_p,  # [B]
    min_p,  # [B]
    tokens,  # [B, N] out
    N,
    V,
    stride_sequence,
    stride_node,
    B,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    b = place // N
    node = place % N
    token = tl.full((), 0, tl.int64)
    if node < tl.load(sizes + b):
        row = logits + b * stride_sequence + node * stride_node
        heat = tl.load(temperature + b)
        sampled = heat > 0
        divisor = tl.where(sampled, heat, 1.0)
        k, p, least = tl.load(top_k + b), tl.load(top_p + b), tl.load(min_p + b)
        filtered = sampled & (((k > 0) & (k < V)) | (p < 1) | (least > 0))
        cut = float("-inf")
        first = 0
        if filtered:
            lowest, highest = row_ends(row, V, BLOCK)
            cut, first = row_filter(row, V, lowest, highest, divisor, k, p, least, BLOCK)
        position = tl.load(positions + b) + tl.load(depths + place) + 1
        low, high = noise_key(seeds, B, b, position, 0)
        token = best_token(row, V, divisor, cut, first, filtered, sampled, low, high, False, BLOCK)
    tl.store(tokens + place, token)


def target_tokens_fused(
    logits: Tensor,
    positions: Tensor,
    depths: Tensor,
    sizes: Tensor,
    seeds: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
) -> Tensor:
    """See `specdec.kernels.target_tokens.target_tokens`. Reads nothing to the host."""
    batch, nodes, vocab = logits.shape
    tokens = torch.empty(batch, nodes, dtype=torch.int64, device=logits.device)
    block, warps = choose_block(batch * nodes, vocab)
    target_tokens_kernel[(batch * nodes,)](
        logits,
        positions.contiguous(),
        depths.contiguous(),
        sizes.contiguous(),
        seeds.contiguous(),
        temperature.contiguous(),
        top_k.contiguous(),
        top_p.contiguous(),
        min_p.contiguous(),
        tokens,
        nodes,
        vocab,
        logits.stride(0),
        logits.stride(1),
        batch,
        BLOCK=block,
        num_warps=warps,
    )
    return tokens
