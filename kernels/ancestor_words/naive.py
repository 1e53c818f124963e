"""Ancestor words by pointer doubling: after round k every node has joined with its 2^k nearest ancestors."""

import torch
from torch import Tensor

WORD_BITS = 64


def ancestor_words_naive(parents: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """See `specdec.kernels.ancestor_words.ancestor_words`. Reads nothing to the host: log2(N) rounds, as deep as N."""
    batch, nodes = parents.shape
    node = torch.arange(nodes, device=parents.device)
    live = node < sizes[:, None]  # [B, N]
    own = torch.zeros(nodes, -(-nodes // WORD_BITS), dtype=torch.int64, device=parents.device)
    own.scatter_(1, (node // WORD_BITS)[:, None], (torch.ones_like(node) << (node % WORD_BITS))[:, None])
    # a row of nothing at index N is where nodes without a parent jump to, and it jumps to itself
    words = torch.zeros(batch, nodes + 1, own.shape[1], dtype=torch.int64, device=parents.device)
    words[:, :nodes] = torch.where(live[..., None], own, 0)
    jump = torch.full((batch, nodes + 1), nodes, dtype=torch.int64, device=parents.device)
    jump[:, :nodes] = torch.where(live & (parents >= 0), parents.long(), nodes)
    depths = (jump < nodes).int()  # [B, N + 1] edges climbed so far
    for _ in range((nodes - 1).bit_length()):
        words = words | words.gather(1, jump[..., None].expand_as(words))
        depths = depths + depths.gather(1, jump)
        jump = jump.gather(1, jump)
    return words[:, :nodes].contiguous(), depths[:, :nodes].contiguous()
