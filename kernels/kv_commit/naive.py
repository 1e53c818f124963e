"""Move the KV of accepted paths; which slots move is decided on the host. Few go one by one, many by one read and one
write a tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

FEW = 8  # moves that cost less one by one (measured on a CPU)


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
    if len(moves) <= FEW:  # a node moves to a place before its own and behind those read before: none is lost
        pages = block_table.tolist()
        for arena in arenas:
            page = arena.shape[3]
            for b, source, target in moves:
                row = arena[:, pages[b][source // page], :, source % page]  # [layers, heads, size]
                arena[:, pages[b][target // page], :, target % page] = row
        return
    sequence, source, target = torch.tensor(moves, device=path.device).unbind(1)  # [moves] each
    for arena in arenas:
        page = arena.shape[3]
        from_page, to_page = (block_table[sequence, slot // page].long() for slot in (source, target))
        rows = arena[:, from_page, :, source % page]  # [moves, layers, heads, size]: all are read before one is written
        arena[:, to_page, :, target % page] = rows
