"""Acceptance as a bitset test: a node is on the accepted path when it and all its ancestors are what was wanted."""

import torch
from torch import Tensor

WORD_BITS = 64


def accept(
    tokens: Tensor, parents: Tensor, sizes: Tensor, words: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `specdec.kernels.accept`."""
    nodes = tokens.shape[1]
    node = torch.arange(nodes, device=tokens.device)
    live = node < sizes[:, None]  # [B, N]
    is_root = parents < 0
    wanted = targets.gather(1, parents.clamp_min(0).long()) == tokens
    good = live & (is_root | wanted)  # [B, N]
    place, bit = node // WORD_BITS, torch.ones_like(node) << (node % WORD_BITS)  # [N]
    bits = torch.where(good, bit, 0)
    mask = torch.zeros_like(words[:, 0]).index_add_(1, place, bits)  # [B, W]: disjoint bits, adding is or-ing
    accepted = live & ((words & ~mask[:, None]) == 0).all(-1)  # [B, N]
    depth = ((words[:, :, place] & bit) != 0).sum(-1)  # [B, N]: path length, the root included
    best = torch.where(accepted, depth, 0).argmax(-1, keepdim=True)  # [B, 1]: deepest, then lowest
    length = torch.where(accepted, depth, 0).gather(1, best)[:, 0]  # [B]
    on_path = (words.gather(1, best[..., None].expand(-1, 1, words.shape[2]))[:, 0, place] & bit) != 0  # [B, N]
    # node order is path order: the nodes on the path first, in order
    order = torch.where(on_path, node, nodes).sort(-1).values
    path = torch.where(order < nodes, order, -1)
    return path, length.to(torch.int32), targets.gather(1, best)[:, 0]
