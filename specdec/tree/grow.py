"""Grow a tree level by level: a policy gives the shape, a drafter the logits, the step's noise the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from specdec.core import TreePolicy, draws_with_replacement
from specdec.sampling import DraftNoise
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True)
class Frontier:
    """Nodes to be expanded at one level.

    Attributes:
        level: their depth, 1 or more.
        tokens: `[B, F]` int64.
        parents: `[B, F]` int64, index of each one's parent in the frontier one level up.
        above: the frontier one level up; None at level 1, below the root.
    """

    level: int
    tokens: Tensor
    parents: Tensor
    above: Frontier | None = None

    @cached_property
    def path(self) -> Tensor:
        """`[B, F, level]` int64, tokens from below the root to each node."""
        tokens = self.tokens[..., None]
        if self.above is None:
            return tokens
        index = self.parents[..., None].expand(-1, -1, self.level - 1)
        return torch.cat([self.above.path.gather(1, index), tokens], -1)


@dataclass(frozen=True, slots=True)
class Grown:
    """A tree, and for every node which expanded node it was: `[B, N]` int64, counted over all levels, -1 for the root
    and for nodes that were never expanded."""

    tree: TokenTree
    expanded: Tensor


Expand = Callable[[Frontier], Tensor]  # the drafter's logits [B, F, V] after every node of a frontier


def grow(policy: TreePolicy, roots: Tensor, root_logits: Tensor, expand: Expand, noise: DraftNoise) -> Grown:
    """Draft a tree for every slot.

    Args:
        policy: gives the shape.
        roots: `[B]` int64, -1 for an empty slot.
        root_logits: `[B, V]`, the drafter's after the root.
        expand: gives logits further down.
        noise: chooses tokens.
    """
    grown = (_grow_fixed if policy.fixed_shape else _grow_ranked)(policy, roots, root_logits, expand, noise)
    grown.tree.no_deeper_than(policy.depth)
    return grown


def count_expanded(policy: TreePolicy) -> int:
    """How many nodes below the root are expanded while a tree grows, those that are pruned in the end included."""
    frontier = total = 1
    for level in range(policy.depth - 1):
        frontier = policy.grow(level, torch.zeros(1, frontier, policy.branching(level)))[1].shape[1]
        total += frontier
    return total - 1


def check_width(policy: TreePolicy, tokens: int) -> None:
    """Look whether a drafter that knows `tokens` tokens can give every node the children the policy wants.

    Raises:
        ValueError: it cannot.
    """
    widest = max(map(policy.branching, range(policy.depth)))
    if widest > tokens:
        raise ValueError(
            f"the tree drafts {widest} children a node; {tokens} tokens can be drafted here, so give a tree that "
            f"drafts at most {tokens}"
        )


@dataclass(frozen=True, slots=True)
class _Stage:
    """One level of a fixed shape: children a node, candidates kept `[M]`, those expanded next `[F']`, their parents'
    place in the frontier `[F']`, and the tree nodes of the frontier itself `[1, F]`."""

    count: int
    kept: Tensor
    onward: Tensor
    parents: Tensor
    frontier: Tensor


@cache  # a CUDA graph may hold what it gives
def _fixed_shape(policy: TreePolicy, device: torch.device) -> tuple[list[_Stage], TokenTree, Tensor]:
    """The levels, a tree of that shape (its tokens mean nothing), and `expanded` `[1, N]`."""
    stages: list[_Stage] = []
    parents, expanded, calls = [-1], [-1], 0
    frontier = torch.zeros(1, 1, dtype=torch.int64)  # the shape is made on the host, once
    for level in range(policy.depth):
        count = policy.branching(level)
        kept, onward = (x[0] for x in policy.grow(level, torch.zeros(1, frontier.shape[1], count)))
        if level + 1 == policy.depth:
            onward = onward[:0]
        numbers = dict(zip(onward.tolist(), range(calls, calls + len(onward)), strict=True))
        tensors = (x.to(device) for x in (kept, onward, (kept // count)[onward], frontier))
        stages.append(_Stage(count, *tensors))
        frontier, before = (len(parents) + onward)[None], frontier
        parents += before[0][kept // count].tolist()
        expanded += [numbers.get(i, -1) for i in range(len(kept))]
        calls += len(onward)
    tree = TokenTree.from_lists([([0] * len(parents), parents)], device)
    return stages, tree, torch.tensor([expanded], device=device)


def _grow_fixed(policy: TreePolicy, roots: Tensor, root_logits: Tensor, expand: Expand, noise: DraftNoise) -> Grown:
    """Only the tokens are new at every step; children may be drawn, and what they were drawn from is kept."""
    stages, shape, expanded = _fixed_shape(policy, roots.device)
    batch, live = len(roots), roots[:, None] >= 0  # [B, 1]
    replacement = draws_with_replacement(policy)
    logits = root_logits[:, None]  # [B, 1, V]
    path = roots.new_empty(batch, 1, 0)
    frontier: Frontier | None = None
    tokens = [roots[:, None]]
    probs: list[tuple[Tensor, Tensor]] = []  # (frontier nodes, the distribution their children were drawn from)
    for level, stage in enumerate(stages):
        drawn, _, distribution = noise.choose(logits, level, stage.count, path, replacement=replacement)
        if distribution is not None:
            probs.append((stage.frontier, distribution))
        tokens.append(drawn.flatten(1)[:, stage.kept])  # [B, M]
        if len(stage.onward):
            onward = tokens[-1][:, stage.onward]  # [B, F']
            frontier = Frontier(level + 1, onward, stage.parents.expand(batch, -1), frontier)
            logits = expand(frontier)
            path = frontier.path if noise.reads_paths else path
    all_tokens = torch.where(live, torch.cat(tokens, 1), 0)  # [B, N]
    draft_probs = None
    if probs:
        draft_probs = probs[0][1].new_zeros(*all_tokens.shape, probs[0][1].shape[-1])  # [B, N, V]
        for nodes, rows in probs:
            draft_probs[:, nodes[0]] = rows
    sizes = live[:, 0].to(torch.int32) * all_tokens.shape[1]
    parents, replaced = torch.where(live, shape.parents, -1), replacement and draft_probs is not None
    tree = TokenTree(all_tokens, parents, sizes, draft_probs, replacement=replaced)
    tree.with_shape(torch.where(live, shape.depths, 0), torch.where(live[..., None], shape.words, 0))
    return Grown(tree, expanded.expand(batch, -1))


def _grow_ranked(policy: TreePolicy, roots: Tensor, root_logits: Tensor, expand: Expand, noise: DraftNoise) -> Grown:
    """The shape depends on how likely the tokens are, so nothing is drawn."""
    batch = len(roots)
    logits = root_logits[:, None]  # [B, 1, V]
    path = roots.new_empty(batch, 1, 0)
    scores = root_logits.new_zeros(batch, 1, dtype=torch.float32)  # [B, F], log-probability of the frontier's paths
    nodes = roots.new_zeros(batch, 1)  # [B, F], tree nodes of the frontier
    frontier: Frontier | None = None
    tokens, parents = [roots[:, None].clamp_min(0)], [roots.new_full((batch, 1), -1)]
    frontiers, count = [roots.new_empty(batch, 0)], 1
    node_scores: list[Tensor] = []
    for level in range(policy.depth):
        drawn, log_probs, _ = noise.choose(logits, level, policy.branching(level), path, fixed=True)
        assert log_probs is not None
        candidates = scores[..., None] + log_probs  # [B, F, K]
        kept, onward = policy.grow(level, candidates)
        found = [drawn.flatten(1), nodes[..., None].expand_as(drawn).flatten(1), candidates.flatten(1)]
        if kept.shape[1] < found[0].shape[1]:
            found = [x.gather(1, kept) for x in found]  # [B, M]
        for rows, new in zip((tokens, parents, node_scores), found, strict=True):
            rows.append(new)
        if level + 1 == policy.depth or not onward.shape[1]:
            break
        onward_parents = kept.gather(1, onward) // drawn.shape[2]  # [B, F'], into the frontier
        onward_tokens, scores = found[0].gather(1, onward), found[2].gather(1, onward)
        nodes = count + onward
        frontiers.append(nodes)
        count += kept.shape[1]
        frontier = Frontier(level + 1, onward_tokens, onward_parents, frontier)
        logits = expand(frontier)
        path = frontier.path if noise.reads_paths else path
    run = torch.cat(frontiers, 1)  # [B, E], the nodes expanded, one after the other
    numbers = torch.arange(run.shape[1], device=roots.device).expand_as(run)
    all_tokens = torch.cat(tokens, 1)
    expanded = torch.full_like(all_tokens, -1).scatter(1, run, numbers)
    return _prune(policy, roots, all_tokens, torch.cat(parents, 1), torch.cat(node_scores, 1), expanded)


def _prune(
    policy: TreePolicy, roots: Tensor, tokens: Tensor, parents: Tensor, scores: Tensor, expanded: Tensor
) -> Grown:
    """Keep what the policy keeps and number it anew. All `[B, M]` with the root first; `scores` without it."""
    keep = policy.prune(scores)
    if keep is not None:
        keep = torch.nn.functional.pad(keep + 1, (1, 0))  # [B, N], the root first
        numbers = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        renumber = tokens.new_full((len(tokens), tokens.shape[1] + 1), -1).scatter_(1, keep + 1, numbers)  # by node + 1
        tokens, expanded, parents = tokens.gather(1, keep), expanded.gather(1, keep), parents.gather(1, keep)
        parents = renumber.gather(1, parents + 1)
    live = roots[:, None] >= 0  # [B, 1]
    sizes = live[:, 0].to(torch.int32) * tokens.shape[1]
    tokens, parents = torch.where(live, tokens, 0), torch.where(live, parents, -1)
    return Grown(TokenTree(tokens, parents.to(torch.int32), sizes), expanded)
