"""The accepted path of every tree, from the target's token at every node."""

from typing import Literal

import torch
from torch import Tensor

from specdec.kernels.accept.host import accept_host
from specdec.kernels.accept.naive import accept_naive
from specdec.kernels.common.dispatch import prefers_triton, require_triton

HOST_NODES = 512  # up to so many nodes in all, Python integers beat tensor operators on a CPU


def accept(
    tokens: Tensor,
    parents: Tensor,
    sizes: Tensor,
    words: Tensor,
    targets: Tensor,
    backend: Literal["auto", "naive", "host", "triton"] = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the target's tokens down every tree.

    A node is accepted when its parent is and carries its token as the parent's target; node 0 always is. Of the
    accepted nodes the deepest ends the path, the lowest-numbered where there are several.

    Args:
        tokens: `[B, N]` int64.
        parents: `[B, N]` int32, -1 for node 0, else smaller than the node.
        sizes: `[B]` int32, live nodes; 0 for an empty slot.
        words: `[B, N, W]` int64, ancestor words.
        targets: `[B, N]` int64, the target's own token after each node.
        backend: "auto" is triton on a GPU, host for small trees on the CPU, else naive.

    Returns:
        path `[B, N]` int64 node ids, the root first, -1 padded; num_accepted `[B]` int32, 0 for an empty tree;
        next_token `[B]` int64, the target's token after the path (for an empty tree targets[b, 0]).

    Raises:
        ValueError: shapes do not fit, a tree has no room for a root, or the backend is unknown.
    """
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens must be [B, N] with N > 0, got {list(tokens.shape)}")
    for name, tensor in (("parents", parents), ("targets", targets), ("words", words)):
        if tensor.shape[:2] != tokens.shape:
            raise ValueError(f"{name} must begin with tokens' shape {list(tokens.shape)}, got {list(tensor.shape)}")
    if words.dim() != 3 or words.shape[2] * 64 < tokens.shape[1]:
        raise ValueError(f"words must be [B, N, W] with 64 * W >= N = {tokens.shape[1]}, got {list(words.shape)}")
    if backend == "auto":
        on_host = tokens.device.type == "cpu" and not torch.compiler.is_compiling()
        backend = "host" if on_host and tokens.numel() <= HOST_NODES else "naive"
        if prefers_triton(tokens.device):
            backend = "triton"
    if backend == "naive" or tokens.shape[0] == 0:
        return accept_naive(tokens, parents, sizes, words, targets)
    if backend == "host":
        return accept_host(tokens, parents, sizes, words, targets)
    if backend == "triton":
        require_triton()
        from specdec.kernels.accept.fused import accept_fused

        return accept_fused(tokens, parents, sizes, words, targets)
    raise ValueError(f"backend must be auto, naive, host or triton, got {backend!r}")
