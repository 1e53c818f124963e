"""Where the last tokens of every text occurred before: the lookup behind n-gram drafting."""

from typing import Literal

import torch
from torch import Tensor

from specdec.kernels.common.dispatch import prefers_triton, require_triton
from specdec.kernels.ngram_match.naive import ngram_match_naive


def ngram_match(
    texts: Tensor,
    lengths: Tensor,
    min_n: int,
    max_n: int,
    matches: int = 1,
    backend: Literal["auto", "naive", "triton"] = "auto",
) -> tuple[Tensor, Tensor]:
    """Earlier occurrences of each text's last n tokens: the longest n first, the latest first of equal n.

    A place counts once, with the longest match that ends there; matches longer than `max_n` count as `max_n`. The text
    itself, which nothing follows, is no occurrence.

    Args:
        texts: `[B, L]` int64, contiguous in a row; what lies past a text's length is not looked at.
        lengths: `[B]` int32, tokens of every text, at most L; 0 finds nothing.
        min_n: shortest match.
        max_n: longest match.
        matches: how many to find, K.
        backend: "auto" is triton on a GPU, else naive.

    Returns:
        starts `[B, K]` int32, the place right after each occurrence, always below the text's length, -1 where there is
        none; match_lengths `[B, K]` int32, 0 where there is none.

    Raises:
        ValueError: shapes or dtypes do not fit, a number is out of range, or the backend is unknown.
    """
    if texts.dim() != 2 or lengths.shape != texts.shape[:1]:
        raise ValueError(f"texts must be [B, L] and lengths [B], got {list(texts.shape)} and {list(lengths.shape)}")
    if texts.dtype != torch.int64 or lengths.dtype != torch.int32:
        raise ValueError(f"texts must be int64 and lengths int32, got {texts.dtype} and {lengths.dtype}")
    if texts.shape[1] > 1 and texts.stride(1) != 1:
        raise ValueError(f"texts must be contiguous in its last dimension, got strides {texts.stride()}")
    if not 1 <= min_n <= max_n or matches < 1:
        raise ValueError(f"expected 1 <= min_n <= max_n and matches >= 1, got {min_n}, {max_n} and {matches}")
    if backend == "auto":
        backend = "triton" if prefers_triton(texts.device) else "naive"
    if backend == "naive" or texts.numel() == 0:
        return ngram_match_naive(texts, lengths, min_n, max_n, matches)
    if backend == "triton":
        require_triton()
        from specdec.kernels.ngram_match.fused import ngram_match_fused

        return ngram_match_fused(texts, lengths, min_n, max_n, matches)
    raise ValueError(f"backend must be auto, naive or triton, got {backend!r}")
