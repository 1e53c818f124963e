"""Acceptance as a walk in plain Python: for small trees on a CPU faster than tensor operators."""

import torch
from torch import Tensor


def accept_host(
    tokens: Tensor, parents: Tensor, sizes: Tensor, words: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `specdec.kernels.accept.accept`. Needs no words: a node follows when its parent was accepted."""
    nodes = tokens.shape[1]
    paths, counts, nexts = [], [], []
    rows = zip(tokens.tolist(), parents.tolist(), sizes.tolist(), targets.tolist(), strict=True)
    for token, parent, size, target in rows:
        depth = [0] * nodes  # of accepted nodes, the root's is 1
        best = 0
        if size:
            depth[0] = 1
        for j in range(1, size):
            above = parent[j]
            if above >= 0 and depth[above] and target[above] == token[j]:
                depth[j] = depth[above] + 1
                if depth[j] > depth[best]:
                    best = j
        count = depth[best]
        path = [-1] * nodes
        node = best
        for i in range(count - 1, -1, -1):
            path[i] = node
            node = parent[node]
        paths.append(path)
        counts.append(count)
        nexts.append(target[best])
    return torch.tensor(paths), torch.tensor(counts, dtype=torch.int32), torch.tensor(nexts)
