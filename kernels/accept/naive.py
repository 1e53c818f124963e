"""Acceptance as a bitset test: a node is on the accepted path when it and all its ancestors are what was wanted."""

import torch
from torch import Tensor

WORD_BITS = 64


def accept_naive(
    tokens: Tensor, parents: Tensor, sizes: Tensor, words: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `specdec.kernels.accept.accept`. Reads nothing to the host."""
    nodes = tokens.shape[1]
    node = torch.arange(nodes, device=tokens.device)
    live = node < sizes[:, None]  # [B, N]
    wanted = targets.gather(1, parents.long().clamp(0, nodes - 1)) == tokens
    good = live & torch.where(parents < 0, node == 0, wanted)  # [B, N]; a second root is nobody's continuation
    place, bit = node // WORD_BITS, torch.ones_like(node) << (node % WORD_BITS)  # [N]
    mask = torch.zeros_like(words[:, 0]).index_add_(1, place, torch.where(good, bit, 0))  # [B, W]: distinct bits
    accepted = live & ((words & ~mask[:, None]) == 0).all(-1)  # [B, N]
    length = ((words[:, :, place] & bit) != 0).sum(-1)  # [B, N] nodes on the way from the root
    length = torch.where(accepted, length, 0)
    best = length.argmax(-1, keepdim=True)  # [B, 1]; deepest, then lowest
    best_words = words.gather(1, best[..., None].expand(-1, 1, words.shape[2]))[:, 0]  # [B, W]
    on_path = accepted.gather(1, best) & ((best_words[:, place] & bit) != 0)  # [B, N]
    order = torch.where(on_path, node, nodes).sort(-1).values  # node order is path order
    path = torch.where(order < nodes, order, -1)
    return path, on_path.sum(-1).int(), targets.gather(1, best)[:, 0]
