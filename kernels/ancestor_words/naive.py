"""Ancestor words by pointer jumping: every node climbs one parent per round and sets the bit of where it stands."""

import torch
from torch import Tensor

WORD_BITS = 64


def ancestor_words(parents: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """See `specdec.kernels.ancestor_words`. As many rounds as a tree can be deep: nothing is read to the host."""
    batch, nodes = parents.shape
    node = torch.arange(nodes, device=parents.device)
    live = node < sizes[:, None]  # [B, N]
    current = torch.where(live, node, -1)  # [B, N]
    words = torch.zeros(batch, nodes, max(1, -(-nodes // WORD_BITS)), dtype=torch.int64, device=parents.device)
    depths = torch.full_like(current, -1)
    climb = parents.long()
    for _ in range(nodes):
        climbing = current >= 0
        if parents.device.type == "cpu" and not torch.compiler.is_compiling() and not climbing.any():
            break
        place = current.clamp_min(0)
        bit = torch.where(climbing, torch.ones_like(place) << (place % WORD_BITS), 0)
        words.scatter_add_(2, (place // WORD_BITS)[..., None], bit[..., None])  # disjoint bits: adding is or-ing
        depths += climbing
        current = torch.where(climbing, climb.gather(1, place), -1)
    return words, depths.clamp_min(0).to(torch.int32)
