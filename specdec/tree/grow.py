"""Grow a tree level by level: a policy gives the shape, a drafter the logits, the step's noise the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core import TreePolicy
from specdec.sampling import DraftNoise
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Frontier:
    """Nodes to be expanded at one level.

    Attributes:
        level: their depth, 1 or more.
        tokens: `[B, F]` int64.
        parents: `[B, F]` int64, index of each one's parent in the frontier one level up.
        path: `[B, F, level]` int64, tokens from below the root to each node.
    """

    level: int
    tokens: Tensor
    parents: Tensor
    path: Tensor


@dataclass(frozen=True, slots=True)
class Grown:
    """A tree, and for every node which expanded node it was: `[B, N]` int64, counted over all levels, -1 for the root
    and for nodes that were never expanded."""

    tree: TokenTree
    expanded: Tensor


def grow(
    policy: TreePolicy,
    roots: Tensor,
    root_logits: Tensor,
    expand: Callable[[Frontier], Tensor],
    noise: DraftNoise,
) -> Grown:
    """Draft a tree for every slot.

    Args:
        policy: gives the shape.
        roots: `[B]` int64, -1 for an empty slot.
        root_logits: `[B, V]`, the drafter's after the root.
        expand: the drafter's logits `[B, F, V]` after every node of a frontier.
        noise: chooses tokens.
    """
    batch = len(roots)
    logits = root_logits[:, None]  # [B, 1, V]
    path = roots.new_empty(batch, 1, 0)
    scores = root_logits.new_zeros(batch, 1, dtype=torch.float32)  # [B, F], log-probability of the frontier's paths
    frontier_nodes = roots.new_zeros(batch, 1)  # [B, F], tree nodes of the frontier
    tokens, parents, node_scores, expanded = [roots[:, None].clamp_min(0)], [roots.new_full((batch, 1), -1)], [], []
    expanded.append(parents[0])
    probs: list[tuple[Tensor, Tensor]] = []  # (frontier nodes, the distribution their children were drawn from)
    count, calls = 1, 0
    for level in range(policy.depth):
        drawn, log_probs, distribution = noise.choose(
            logits, level, policy.branching(level), path, fixed=not policy.fixed_shape
        )
        if distribution is not None:
            probs.append((frontier_nodes, distribution))
        candidate_scores = scores[..., None] + log_probs  # [B, F, K]
        kept, onward = policy.grow(level, candidate_scores)
        parent_index = kept // drawn.shape[2]  # [B, M], into the frontier
        level_tokens = drawn.flatten(1).gather(1, kept)  # [B, M]
        level_scores = candidate_scores.flatten(1).gather(1, kept)
        level_expanded = torch.full_like(level_tokens, -1)
        width = onward.shape[1] if level + 1 < policy.depth else 0
        if width:
            numbers = torch.arange(calls, calls + width, device=roots.device).expand(batch, -1)
            level_expanded = level_expanded.scatter(1, onward, numbers)
        tokens.append(level_tokens)
        parents.append(frontier_nodes.gather(1, parent_index))
        node_scores.append(level_scores)
        expanded.append(level_expanded)
        if not width:
            break
        onward_parents = parent_index.gather(1, onward)  # [B, F']
        onward_tokens = level_tokens.gather(1, onward)
        path = torch.cat([_rows(path, onward_parents), onward_tokens[..., None]], -1)
        logits = expand(Frontier(level + 1, onward_tokens, onward_parents, path))
        scores = level_scores.gather(1, onward)
        frontier_nodes = count + onward
        count += level_tokens.shape[1]
        calls += width
    return _finish(policy, roots, tokens, parents, node_scores, expanded, probs)


def count_expanded(policy: TreePolicy) -> int:
    """How many nodes below the root are expanded while a tree grows, those that are pruned in the end included."""
    frontier = total = 1
    for level in range(policy.depth - 1):
        frontier = policy.grow(level, torch.zeros(1, frontier, policy.branching(level)))[1].shape[1]
        total += frontier
    return total - 1


def _finish(
    policy: TreePolicy,
    roots: Tensor,
    tokens: list[Tensor],
    parents: list[Tensor],
    scores: list[Tensor],
    expanded: list[Tensor],
    probs: list[tuple[Tensor, Tensor]],
) -> Grown:
    all_tokens, all_parents, all_expanded = (torch.cat(x, 1) for x in (tokens, parents, expanded))
    keep = policy.prune(torch.cat(scores, 1))
    if keep is not None:
        keep = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], 1)  # [B, N], the root first
        renumber = torch.zeros_like(all_tokens).scatter(
            1, keep, torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        )
        all_tokens, all_expanded = all_tokens.gather(1, keep), all_expanded.gather(1, keep)
        kept_parents = all_parents.gather(1, keep)
        all_parents = torch.where(kept_parents < 0, -1, renumber.gather(1, kept_parents.clamp_min(0)))
    live = roots[:, None] >= 0  # [B, 1]
    sizes = live[:, 0].to(torch.int32) * all_tokens.shape[1]
    all_tokens, all_parents = torch.where(live, all_tokens, 0), torch.where(live, all_parents, -1)
    draft_probs = None
    if probs:
        nodes = torch.cat([n for n, _ in probs], 1)  # [B, F total]
        rows = torch.cat([p for _, p in probs], 1)  # [B, F total, V]
        draft_probs = rows.new_zeros(*all_tokens.shape, rows.shape[-1])
        draft_probs.scatter_(1, nodes[..., None].expand_as(rows), rows)
    return Grown(TokenTree(all_tokens, all_parents.to(torch.int32), sizes, draft_probs), all_expanded)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """`x` `[B, F, E]` at `index` `[B, F']`: `[B, F', E]`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
