"""Move the KV of accepted paths with one read and one write a tensor; which slots move is decided on the host."""

from collections.abc import Sequence

import torch
from torch import Tensor


def kv_commit_naive(
    arenas: Sequence[Tensor], block_table: Tensor, lengths: Tensor, path: Tensor, num_accepted: Tensor
) -> None:
    """See `specdec.kernels.kv_commit.kv_commit`. Paths that lie in order already cost no tensor operator."""
    moves = [
        (b, first + node, first + i)
        for b, (first, nodes, count) in enumerate(
            zip(lengths.tolist(), path.tolist(), num_accepted.tolist(), strict=True)
        )
        for i, node in enumerate(nodes[:count])
        if node != i
    ]
    if not moves:
        return
    sequence, source, target = torch.tensor(moves, device=path.device).unbind(1)  # [moves] each
    for arena in arenas:
        page = arena.shape[3]
        from_page, to_page = (block_table[sequence, slot // page].long() for slot in (source, target))
        rows = arena[:, from_page, :, source % page]  # [moves, layers, heads, size]: all are read before one is written
        arena[:, to_page, :, target % page] = rows
