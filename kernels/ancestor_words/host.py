"""Ancestor words in plain Python integers: for small trees on a CPU faster than any tensor operator."""

import torch
from torch import Tensor

WORD_BITS = 64
_MASK = (1 << WORD_BITS) - 1


def ancestor_words_host(parents: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """See `specdec.kernels.ancestor_words.ancestor_words`."""
    batch, nodes = parents.shape
    node_words = -(-nodes // WORD_BITS)
    words: list[list[int]] = []
    depths: list[list[int]] = []
    for row, size in zip(parents.tolist(), sizes.tolist(), strict=True):
        seen = [0] * nodes
        depth = [0] * nodes
        for j in range(size):
            parent = row[j]
            if parent >= j:
                raise ValueError(f"parents[{len(words)}, {j}] is {parent}; expected an earlier node, or -1 for a root")
            if parent >= 0:
                seen[j] = seen[parent] | 1 << j
                depth[j] = depth[parent] + 1
            else:
                seen[j] = 1 << j
        words.append(seen)
        depths.append(depth)
    if nodes < WORD_BITS:  # no sign bit in sight
        return torch.tensor(words).unsqueeze(2), torch.tensor(depths, dtype=torch.int32)
    packed = [[_signed(seen >> WORD_BITS * w) for w in range(node_words)] for row in words for seen in row]
    return (
        torch.tensor(packed, dtype=torch.int64).view(batch, nodes, node_words),
        torch.tensor(depths, dtype=torch.int32).view(batch, nodes),
    )


def _signed(word: int) -> int:
    """The lowest 64 bits as a signed integer."""
    word &= _MASK
    return word - (1 << WORD_BITS) if word >> (WORD_BITS - 1) else word
