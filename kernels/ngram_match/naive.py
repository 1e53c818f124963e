"""Earlier occurrences of a text's last tokens: a comparison per n, and the largest of packed keys."""

import torch
from torch import Tensor

LENGTH_SHIFT = 32  # a key is the length of the match above this bit, and the place right after it below


def ngram_match_naive(texts: Tensor, lengths: Tensor, min_n: int, max_n: int, matches: int) -> tuple[Tensor, Tensor]:
    """See `specdec.kernels.ngram_match.ngram_match`. Reads nothing to the host."""
    batch, width = texts.shape
    start = torch.arange(width, device=texts.device)
    same = (start > 0) & (start < lengths[:, None])  # [B, L]: the match so far is unbroken
    length = torch.zeros_like(texts)  # [B, L]
    for n in range(1, min(max_n, width) + 1):
        last = texts.gather(1, (lengths[:, None].long() - n).clamp_min(0))  # [B, 1], n-th from the end
        same = same & (start >= n) & (texts.roll(n, 1) == last)
        length += same
    keys = torch.where(length >= min_n, length << LENGTH_SHIFT | start, 0)  # [B, L]
    best = keys.new_zeros(batch, matches)
    count = min(matches, width)
    best[:, :count] = keys.topk(count).values
    length = best >> LENGTH_SHIFT
    return torch.where(best > 0, best & (1 << LENGTH_SHIFT) - 1, -1).int(), length.int()
