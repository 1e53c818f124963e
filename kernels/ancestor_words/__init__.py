"""Visibility of a tree's nodes, from their parents."""

from typing import Literal

import torch
from torch import Tensor

from specdec.kernels.ancestor_words.host import ancestor_words_host
from specdec.kernels.ancestor_words.naive import ancestor_words_naive
from specdec.kernels.common.dispatch import prefers_triton, require_triton

HOST_NODES = 128  # up to so many nodes in all, Python integers beat tensor operators on a CPU


def ancestor_words(
    parents: Tensor, sizes: Tensor, backend: Literal["auto", "naive", "host", "triton"] = "auto"
) -> tuple[Tensor, Tensor]:
    """Which nodes each node sees: its ancestors and itself.

    Args:
        parents: `[B, N]` int32, -1 for roots, else smaller than the node; padding is not looked at.
        sizes: `[B]` int32, live nodes.
        backend: "auto" is triton on a GPU, host for small trees on the CPU, else naive.

    Returns:
        words `[B, N, ceil(N / 64)]` int64, bit i % 64 of word i // 64 of row j set when node i is visible to node j;
        depths `[B, N]` int32, 0 for roots. Both are 0 for padding.

    Raises:
        ValueError: shapes or dtypes do not fit, or the backend is unknown.
    """
    if parents.dim() != 2 or sizes.shape != parents.shape[:1]:
        raise ValueError(f"parents must be [B, N] and sizes [B], got {list(parents.shape)} and {list(sizes.shape)}")
    if parents.is_floating_point() or parents.dtype == torch.bool:
        raise ValueError(f"parents must be int32, got {parents.dtype}")
    if backend == "auto":
        on_host = parents.device.type == "cpu" and not torch.compiler.is_compiling()
        backend = "host" if on_host and parents.numel() <= HOST_NODES else "naive"
        if prefers_triton(parents.device):
            backend = "triton"
    if parents.numel() == 0:
        backend = "naive"
    if backend == "naive":
        return ancestor_words_naive(parents, sizes)
    if backend == "host":
        return ancestor_words_host(parents, sizes)
    if backend == "triton":
        require_triton()
        from specdec.kernels.ancestor_words.fused import ancestor_words_fused

        return ancestor_words_fused(parents if parents.stride(1) == 1 else parents.contiguous(), sizes)
    raise ValueError(f"backend must be auto, naive, host or triton, got {backend!r}")
