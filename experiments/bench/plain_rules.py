"""Acceptance rules for one sequence in plain steps, as their papers have them: what the rules' results are held to.

Every function takes one sequence's tree and logits (batch 1) and its step's sampling, makes the same random choices as
the rule and nothing else alike: no batch, no lockstep, nothing put off. They return the path and the token after it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree

Plain = Callable[[TokenTree, Tensor, StepSampling], tuple[list[int], int]]


class _Nodes:
    """A tree, node by node."""

    def __init__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling):
        size = int(tree.sizes[0])
        self.tokens, self.parents = tree.tokens[0, :size].tolist(), tree.parents[0, :size].tolist()
        self._tree, self._logits, self._sampling = tree, logits, sampling

    def path(self, node: int) -> list[int]:
        return [*self.path(self.parents[node]), node] if node else [0]

    def children(self, node: int) -> list[int]:
        return [j for j, parent in enumerate(self.parents) if parent == node]

    def target(self, node: int) -> Tensor:
        """`[V]`."""
        return self._sampling.probs(self._logits[:, node], self._below(node))[0]

    def target_token(self, node: int) -> int:
        path = self.path(node)
        return int(self._sampling.draw(self._logits[:, node], len(path) - 1, self._below(node)))

    def draft(self, node: int) -> Tensor:
        """`[V]`."""
        assert self._tree.draft_probs is not None
        return self._tree.draft_probs[0, node]

    def _below(self, node: int) -> Tensor:
        return torch.tensor([[self.tokens[j] for j in self.path(node)[1:]]], dtype=torch.int64).view(1, -1)


def follow(tree: TokenTree, logits: Tensor, sampling: StepSampling) -> tuple[list[int], int]:
    """`coupled`, and every lossless rule where children were fixed."""
    nodes, path = _Nodes(tree, logits, sampling), [0]
    while True:
        token = nodes.target_token(path[-1])
        child = next((j for j in nodes.children(path[-1]) if nodes.tokens[j] == token), None)
        if child is None:
            return path, token
        path.append(child)


def rejection(tree: TokenTree, logits: Tensor, sampling: StepSampling) -> tuple[list[int], int]:
    """`rejection` of drawn children."""
    nodes, path = _Nodes(tree, logits, sampling), [0]
    while True:
        depth, target, draft = len(path) - 1, nodes.target(path[-1]), nodes.draft(path[-1])
        for turn, child in enumerate(nodes.children(path[-1])):
            chance = _ratio(target, draft, nodes.tokens[child], 1.0)
            if bool(sampling.accept(torch.tensor([chance]), depth, turn)):
                path.append(child)
                break
            target, draft, _ = _refused(tree, target, draft, nodes.tokens[child], 1.0)
        else:
            return path, int(sampling.draw_from(target[None], depth))


def block(tree: TokenTree, logits: Tensor, sampling: StepSampling) -> tuple[list[int], int]:
    """`block`: every end of the chain is tried, and the longest taken."""
    nodes, chance, best = _Nodes(tree, logits, sampling), 1.0, 0
    residual = torch.empty(0)
    for node in range(len(nodes.tokens)):
        target, after, left = nodes.target(node), nodes.target(node), chance
        if node + 1 < len(nodes.tokens):
            after, _, left = _refused(tree, target, nodes.draft(node), nodes.tokens[node + 1], chance)
        if node == 0 or bool(sampling.accept(torch.tensor([left]), 0, node)):
            best, residual = node, after
        if node + 1 < len(nodes.tokens):
            chance = _ratio(target, nodes.draft(node), nodes.tokens[node + 1], chance)
    return nodes.path(best), int(sampling.draw_from(residual[None], 0))


def traversal(tree: TokenTree, logits: Tensor, sampling: StepSampling) -> tuple[list[int], int]:
    """`traversal`, as its recursion."""
    nodes, turn = _Nodes(tree, logits, sampling), 0

    def visit(node: int, chance: float) -> tuple[int, Tensor] | None:
        """The accepted node at or below `node`, and what is left of its target; None if it is refused."""
        nonlocal turn
        target, draft = nodes.target(node), nodes.draft(node)
        for child in nodes.children(node):
            turn += 1
            if found := visit(child, _ratio(target, draft, nodes.tokens[child], chance)):
                return found
            target, draft, chance = _refused(tree, target, draft, nodes.tokens[child], chance)
        if node == 0:
            return 0, target
        turn += 1
        return (node, target) if bool(sampling.accept(torch.tensor([chance]), 0, turn)) else None

    last, residual = visit(0, 1.0) or (0, torch.empty(0))
    return nodes.path(last), int(sampling.draw_from(residual[None], 0))


def deepest(fits: Callable[[Tensor], Tensor]) -> Plain:
    """`typical` and `relaxed`: of all paths whose tokens fit, the deepest, of these the likeliest."""

    def judge(tree: TokenTree, logits: Tensor, sampling: StepSampling) -> tuple[list[int], int]:
        nodes = _Nodes(tree, logits, sampling)
        found: list[tuple[int, float, list[int]]] = []

        def visit(node: int, likely: float) -> None:
            path, target = nodes.path(node), nodes.target(node)
            found.append((len(path), likely, path))
            fitting = fits(target[None])[0]
            for child in nodes.children(node):
                token = nodes.tokens[child]
                if fitting[token] and target[token] > 0:
                    visit(child, likely + float(target[token].log()))

        visit(0, 0.0)
        path = max(found, key=lambda each: each[:2])[2]
        return path, int(nodes.target(path[-1]).argmax())

    return judge


def _ratio(target: Tensor, draft: Tensor, token: int, chance: float) -> float:
    """How likely a child is accepted; one that the draft gives no probability counts as fixed."""
    offered = float(draft[token])
    return min(1.0, chance * float(target[token]) / (offered if offered > 0 else 1.0))


def _refused(tree: TokenTree, target: Tensor, draft: Tensor, token: int, chance: float) -> tuple[Tensor, Tensor, float]:
    """Target and draft `[V]` and chance of a node once the child with `token` is refused."""
    certain = torch.zeros_like(draft).index_fill_(0, torch.tensor(token), 1.0)
    left = (chance * target - (draft if draft[token] > 0 else certain)).clamp_min(0)
    total = float(left.sum())
    missing = total + 1 - chance
    others = draft if tree.replacement else draft.index_fill(0, torch.tensor(token), 0.0)
    rest = float(others.sum())
    return (
        left / total if total > 0 else target,
        others / rest if rest > 0 else others,
        (total / missing if missing > 0 else 1.0),
    )
