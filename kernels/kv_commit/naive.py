"""Move the KV of an accepted path next to the committed tokens, in place."""

from collections.abc import Sequence

import torch
from torch import Tensor


def kv_commit(
    arenas: Sequence[Tensor], block_table: Tensor, lengths: Tensor, path: Tensor, num_accepted: Tensor
) -> None:
    """See `specdec.kernels.kv_commit`. Reads the path to the host: on a CPU most paths need no move."""
    for slot, (first, nodes, count) in enumerate(
        zip(lengths.tolist(), path.tolist(), num_accepted.tolist(), strict=True)
    ):
        start = next((i for i in range(count) if nodes[i] != i), count)
        if start == count:
            continue
        index = torch.tensor([first + n for n in nodes[start:count]], device=path.device)  # [n]
        places = torch.arange(first + start, first + count, device=path.device)
        for arena in arenas:
            page = arena.shape[3]
            table = block_table[slot].long()
            source = arena[:, table[index // page], :, index % page]  # [n, layers, heads, size]: read all, then write
            arena[:, table[places // page], :, places % page] = source
