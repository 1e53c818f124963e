"""Rejection sampling: accept a drafted token with probability min(1, target / draft), else draw from the residual.

Chains: Leviathan et al. (arXiv 2211.17192), Chen et al. (arXiv 2302.01318). Trees: the children of a node are tried in
turn against the residual that the rejected ones left. If siblings were drawn without replacement, the rejected ones are
taken out of the draft distribution, too (recursive rejection, as in Sequoia, arXiv 2402.12374); if they were drawn with
replacement, it stays as it is (multi-step speculative sampling, SpecInfer, arXiv 2305.09781). Children that were fixed
without drawing need no draft distribution: the target draws, and the walk follows the child that carries its token.

Guarantee: the text is distributed as the target alone would write it.
Why: a round outputs x with probability min(p, q)(x), and what is missing of p is just the residual max(0, p - q); the
next child was drawn from q without the rejected one, or again from q, and so the same holds again for the residual. A
second child with the rejected token is one more round: the residual has nothing left for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specdec.acceptance.coupled import follow
from specdec.acceptance.paths import row_of
from specdec.core import Verdict
from specdec.kernels.tree_rejection import tree_rejection
from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Rejection:
    """See the module. Lossless in distribution."""

    lossless: ClassVar[bool] = True
    shared_noise: ClassVar[bool] = False

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """`logits` `[B, N, V]`."""
        if tree.draft_probs is None:
            return follow(tree, logits, sampling)
        if sampling.at_once:
            scores = sampling.penalised(tree, logits)
            trees = (tree.tokens, tree.parents, tree.sizes, scores, tree.draft_probs)
            settings = (sampling.positions, *sampling.settings)
            return Verdict(*tree_rejection(*trees, *settings, replacement=tree.replacement))
        return _reject(tree, tree.draft_probs, logits, sampling)


def _reject(tree: TokenTree, draft_probs: Tensor, logits: Tensor, sampling: StepSampling) -> Verdict:
    rows = torch.arange(tree.batch_size, device=logits.device)
    node = torch.zeros_like(rows)  # [B]
    walking = tree.sizes > 0
    next_token = torch.zeros_like(rows)
    path = torch.full_like(tree.tokens, -1)  # [B, N]
    below = path.clone()
    for depth in range(tree.max_nodes):
        path[:, depth] = torch.where(walking, node, -1)
        target_probs = sampling.probs(row_of(logits, node), below[:, :depth])  # [B, V]
        child, residual = _try_children(tree, node, target_probs, row_of(draft_probs, node), sampling, depth)
        stopped = walking & (child < 0)
        next_token = torch.where(stopped, sampling.draw_from(residual, depth), next_token)
        walking = walking & (child >= 0)
        node = torch.where(walking, child, node)
        below[:, depth] = torch.where(walking, tree.tokens[rows, node], -1)
        if not walking.any():
            break
    return Verdict(path, (path >= 0).sum(-1, dtype=torch.int32), next_token)


def _try_children(
    tree: TokenTree, node: Tensor, target_probs: Tensor, draft_probs: Tensor, sampling: StepSampling, depth: int
) -> tuple[Tensor, Tensor]:
    """The accepted child of `node` `[B]` (-1: none) and the distribution `[B, V]` left when all were rejected."""
    is_child = tree.parents == node[:, None]  # [B, N]
    rank = is_child.cumsum(-1) - 1  # [B, N]
    rounds = int(is_child.sum(-1).max())
    accepted = torch.full_like(node, -1)
    for turn in range(rounds):
        match = is_child & (rank == turn)  # [B, N]
        trying = match.any(-1) & (accepted < 0)  # [B]
        child = match.int().argmax(-1)
        token = tree.tokens.gather(1, child[:, None])  # [B, 1]
        target, draft = target_probs.gather(1, token)[:, 0], draft_probs.gather(1, token)[:, 0]  # [B]
        # a child the draft gives no probability to cannot have been drawn from it: it counts as fixed
        drawn = draft > 0
        probability = torch.where(trying, target / torch.where(drawn, draft, 1.0), 0.0)
        accept = sampling.accept(probability, depth, turn)
        accepted = torch.where(accept, child, accepted)
        rejected = (trying & ~accept)[:, None]
        left = torch.where(drawn[:, None], target_probs - draft_probs, target_probs.scatter(1, token, 0.0))
        target_probs = torch.where(rejected, _normalise(left.clamp_min(0), target_probs), target_probs)
        if not tree.replacement:
            draft_probs = torch.where(rejected, _normalise(draft_probs.scatter(1, token, 0.0), None), draft_probs)
    return accepted, target_probs


def _normalise(weights: Tensor, otherwise: Tensor | None) -> Tensor:
    """`[B, V]` weights that sum to one; `otherwise` (None: zeros) where there is nothing left but rounding."""
    total = weights.sum(-1, keepdim=True)
    fallback = torch.zeros_like(weights) if otherwise is None else otherwise
    return torch.where(total > 0, weights / total.clamp_min(1e-38), fallback)
