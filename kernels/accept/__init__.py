"""The accepted path of every tree, from the target's token at every node."""

from torch import Tensor

from specdec.kernels.accept.naive import accept as naive


def accept(
    tokens: Tensor, parents: Tensor, sizes: Tensor, words: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the target's tokens down every tree.

    Args:
        tokens: `[B, N]` int64.
        parents: `[B, N]` int32.
        sizes: `[B]` int32.
        words: `[B, N, W]` int64, ancestor words.
        targets: `[B, N]` int64, the target's own token after each node.

    Returns:
        path `[B, N]` int64 node ids, the root first, -1 padded; num_accepted `[B]` int32, 0 for an empty tree;
        next_token `[B]` int64, the target's token after the path.
    """
    return naive(tokens, parents, sizes, words, targets)
