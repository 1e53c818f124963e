"""Earlier occurrences of a text's last tokens: the best of every block of places, then the best of those."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # places of a program


@triton.jit
def _take_largest(keys):
    """The largest of distinct keys, and the keys without it (0 in its place)."""
    top = tl.max(keys, 0)
    return top, tl.where(keys == top, 0, keys)


@triton.jit
def ngram_match_kernel(
    texts,  # [B, L]
    lengths,  # [B]
    best,  # [B, blocks, MATCHES] int64 out: length of the match << 32 | place after it, 0 for none
    stride_text,
    MIN_N: tl.constexpr,
    MAX_N: tl.constexpr,
    MATCHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    end = tl.load(lengths + b)
    text = texts + b * stride_text
    start = block * BLOCK + tl.arange(0, BLOCK)
    same = (start > 0) & (start < end)  # [BLOCK]: the match so far is unbroken
    length = tl.zeros([BLOCK], tl.int32)
    for n in tl.static_range(1, MAX_N + 1):
        same = same & (start >= n)  # then end > n, too
        last = tl.load(text + end - n, mask=end >= n, other=0)
        token = tl.load(text + start - n, mask=same, other=0)
        same = same & (token == last)
        length += same.to(tl.int32)
    keys = tl.where(length >= MIN_N, (length.to(tl.int64) << 32) | start, 0)
    out = best + (b * tl.num_programs(0) + block) * MATCHES
    for i in tl.static_range(MATCHES):
        top, keys = _take_largest(keys)
        tl.store(out + i, top)


@triton.jit
def ngram_match_select_kernel(
    best,  # [B, candidates]
    starts,  # [B, MATCHES] out
    match_lengths,  # [B, MATCHES] out
    candidates,
    MATCHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    keys = tl.load(best + b * candidates + i, mask=i < candidates, other=0)
    for m in tl.static_range(MATCHES):
        top, keys = _take_largest(keys)
        tl.store(starts + b * MATCHES + m, tl.where(top > 0, top & 0xFFFFFFFF, -1).to(tl.int32))
        tl.store(match_lengths + b * MATCHES + m, (top >> 32).to(tl.int32))


def ngram_match_fused(texts: Tensor, lengths: Tensor, min_n: int, max_n: int, matches: int) -> tuple[Tensor, Tensor]:
    """See `specdec.kernels.ngram_match.ngram_match`. Two launches."""
    batch, width = texts.shape
    blocks = triton.cdiv(width, BLOCK)
    best = torch.empty(batch, blocks, matches, dtype=torch.int64, device=texts.device)
    starts, match_lengths = torch.empty(2, batch, matches, dtype=torch.int32, device=texts.device)
    ngram_match_kernel[(blocks, batch)](
        texts, lengths, best, texts.stride(0), MIN_N=min_n, MAX_N=max_n, MATCHES=matches, BLOCK=BLOCK
    )
    candidates = blocks * matches
    ngram_match_select_kernel[(batch,)](
        best, starts, match_lengths, candidates, MATCHES=matches, BLOCK=triton.next_power_of_2(candidates)
    )
    return starts, match_lengths
