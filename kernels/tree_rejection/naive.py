"""Recursive rejection down every tree, sequence by sequence.

Chains: arXiv 2211.17192. Siblings without replacement: Sequoia, arXiv 2402.12374; with it: SpecInfer, arXiv 2305.09781.
"""

import torch
from torch import Tensor

from specdec import noise
from specdec.kernels.common.filters.naive import filter_rows


def tree_rejection_naive(
    tokens: Tensor,
    parents: Tensor,
    sizes: Tensor,
    logits: Tensor,
    draft_probs: Tensor,
    positions: Tensor,
    seeds: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    replacement: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `specdec.kernels.tree_rejection.tree_rejection`. Reads trees and decisions to the host."""
    batch, nodes, vocab = logits.shape
    steps = torch.arange(1, nodes + 1, device=logits.device)
    places = positions[:, None] + steps  # [B, N]: where the token drawn at a depth stands
    chances = noise.uniform(noise.keys(seeds, places, noise.ACCEPT_STREAM), nodes)  # [B, depth, turn]
    residual_keys = noise.keys(seeds, places, noise.RESIDUAL_STREAM)  # [2, B, depth]
    path = torch.full((batch, nodes), -1, device=logits.device)
    next_token = torch.zeros(batch, dtype=torch.int64, device=logits.device)
    for b, size in enumerate(sizes.tolist()):
        greedy = not float(temperature[b]) > 0
        above = parents[b, :size].tolist()
        node, depth = (0 if size else -1), 0
        while node >= 0:
            path[b, depth] = node
            target = _distribution(filter_rows(logits[b, node], temperature[b], top_k[b], top_p[b], min_p[b]), greedy)
            children = [j for j in range(size) if above[j] == node]
            offered = children, tokens[b], target, draft_probs[b, node], chances[b, depth]
            node, residual = _try_children(*offered, replacement)
            if node < 0:
                scores = residual.log()
                next_token[b] = (
                    scores if greedy else scores + noise.gumbel(residual_keys[:, b, depth], vocab)
                ).argmax()
            depth += 1
    return path, (path >= 0).sum(-1, dtype=torch.int32), next_token


def _distribution(scores: Tensor, greedy: bool) -> Tensor:
    """`[V]` scores to probabilities; all on the greatest if `greedy`."""
    return torch.zeros_like(scores).scatter(0, scores.argmax(0, keepdim=True), 1.0) if greedy else scores.softmax(0)


def _try_children(
    children: list[int], tokens: Tensor, target: Tensor, draft: Tensor, chances: Tensor, replacement: bool
) -> tuple[int, Tensor]:
    """The accepted child (-1: none) and the distribution `[V]` left after those before it were rejected."""
    draft = draft.float()
    for turn, child in enumerate(children):
        token = tokens[child]
        # a child the draft gives no probability to cannot have been drawn from it: it counts as fixed
        drawn = bool(draft[token] > 0)
        if chances[turn] < (target[token] / draft[token] if drawn else target[token]):
            return child, target
        left = (target - draft).clamp_min(0) if drawn else target.index_fill(0, token, 0.0)
        total = left.sum()
        target = torch.where(total > 0, left / total.clamp_min(1e-38), target)  # nothing left but rounding: as before
        if replacement:
            continue
        others = draft.index_fill(0, token, 0.0)
        draft = torch.where(others.sum() > 0, others / others.sum().clamp_min(1e-38), 0.0)
    return -1, target
