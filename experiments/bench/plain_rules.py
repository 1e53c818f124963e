"""Acceptance rules for one sequence in plain steps, as their papers have them: what the rules' results are held to.

Every rule takes one sequence's `Nodes` and returns the path and the token after it. It makes the same random choices as
the rule it is compared with and nothing else alike: no batch, no lockstep, nothing put off.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree

CLOSE = 1e-5  # sums over a vocabulary round by less, in float32


class Nodes:
    """A tree, node by node, and the choices that are made with it.

    Args:
        tree: of one sequence.
        logits: `[1, N, V]`.
        sampling: of its step.

    Attributes:
        close: a probability that differs by `CLOSE`, or a token's by that share, would have made another choice.
    """

    def __init__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling):
        size = int(tree.sizes[0])
        self.tokens, self.parents = tree.tokens[0, :size].tolist(), tree.parents[0, :size].tolist()
        self.replacement, self.close = tree.replacement, False
        self._tree, self._logits, self._sampling = tree, logits, sampling

    def path(self, node: int) -> list[int]:
        """From the root down."""
        return [*self.path(self.parents[node]), node] if node else [0]

    def children(self, node: int) -> list[int]:
        """In index order."""
        return [j for j, parent in enumerate(self.parents) if parent == node]

    def target(self, node: int) -> Tensor:
        """`[V]`."""
        return self._sampling.probs(self._logits[:, node], self._below(node))[0]

    def draft(self, node: int) -> Tensor:
        """`[V]`."""
        assert self._tree.draft_probs is not None
        return self._tree.draft_probs[0, node]

    def accept(self, chance: float, depth: int, turn: int) -> bool:
        """See StepSampling."""
        around = torch.tensor([chance - CLOSE, chance, chance + CLOSE], device=self._logits.device)
        less, taken, more = self._sampling.accept(around, depth, turn).tolist()
        self.close |= less != more
        return bool(taken)

    def draw(self, weights: Tensor, depth: int) -> int:
        """A token, by `weights` `[V]`."""
        token = int(self._sampling.draw_from(weights[None], depth))
        self.close |= int(self._sampling.draw_from(_scaled(weights, token, 1 - CLOSE)[None], depth)) != token
        return token

    def target_token(self, node: int) -> int:
        """The target's own token after a node."""
        logits, depth, below = self._logits[:, node], len(self.path(node)) - 1, self._below(node)
        token = int(self._sampling.draw(logits, depth, below))
        less = logits.clone()
        less[:, token] -= CLOSE
        self.close |= int(self._sampling.draw(less, depth, below)) != token
        return token

    def likeliest(self, node: int) -> int:
        """The target's most likely token after a node."""
        target = self.target(node)
        token = int(target.argmax())
        self.close |= int(_scaled(target, token, 1 - CLOSE).argmax()) != token
        return token

    def _below(self, node: int) -> Tensor:
        path = [self.tokens[j] for j in self.path(node)[1:]]
        return torch.tensor([path], dtype=torch.int64, device=self._logits.device).view(1, -1)


Plain = Callable[[Nodes], tuple[list[int], int]]


def follow(nodes: Nodes) -> tuple[list[int], int]:
    """`coupled`, and every lossless rule where children were fixed."""
    path = [0]
    while True:
        token = nodes.target_token(path[-1])
        child = next((j for j in nodes.children(path[-1]) if nodes.tokens[j] == token), None)
        if child is None:
            return path, token
        path.append(child)


def rejection(nodes: Nodes) -> tuple[list[int], int]:
    """`rejection` of drawn children."""
    path = [0]
    while True:
        depth, target, draft = len(path) - 1, nodes.target(path[-1]), nodes.draft(path[-1])
        for turn, child in enumerate(nodes.children(path[-1])):
            token = nodes.tokens[child]
            if nodes.accept(_ratio(target, draft, token, 1.0), depth, turn):
                path.append(child)
                break
            target, draft, _ = _refused(target, draft, token, 1.0, nodes.replacement)
        else:
            return path, nodes.draw(target, depth)


def block(nodes: Nodes) -> tuple[list[int], int]:
    """`block`: every end of the chain is tried, and the longest taken."""
    chance, best, residual = 1.0, 0, nodes.target(0)
    for node in range(len(nodes.tokens)):
        target, after, left = nodes.target(node), nodes.target(node), chance
        if node + 1 < len(nodes.tokens):
            after, _, left = _refused(target, nodes.draft(node), nodes.tokens[node + 1], chance, nodes.replacement)
        if node == 0 or nodes.accept(left, 0, node):
            best, residual = node, after
        if node + 1 < len(nodes.tokens):
            chance = _ratio(target, nodes.draft(node), nodes.tokens[node + 1], chance)
    return nodes.path(best), nodes.draw(residual, 0)


def traversal(nodes: Nodes) -> tuple[list[int], int]:
    """`traversal`, as its recursion."""
    turn = 0

    def visit(node: int, chance: float) -> tuple[int, Tensor] | None:
        """The accepted node at or below `node`, and what is left of its target; None if it is refused."""
        nonlocal turn
        target, draft = nodes.target(node), nodes.draft(node)
        for child in nodes.children(node):
            turn += 1
            token = nodes.tokens[child]
            if found := visit(child, _ratio(target, draft, token, chance)):
                return found
            target, draft, chance = _refused(target, draft, token, chance, nodes.replacement)
        if node == 0:
            return 0, target
        turn += 1
        return (node, target) if nodes.accept(chance, 0, turn) else None

    found = visit(0, 1.0)
    assert found is not None
    last, residual = found
    return nodes.path(last), nodes.draw(residual, 0)


def deepest(fits: Callable[[Tensor], Tensor]) -> Plain:
    """`typical` and `relaxed`: of all paths whose tokens fit, the deepest, of these the likeliest."""

    def fitting(nodes: Nodes, target: Tensor, token: int) -> bool:
        around = [_scaled(target, token, share) for share in (1 - CLOSE, 1.0, 1 + CLOSE)]
        less, passes, more = (bool(fits(each[None])[0, token]) for each in around)
        nodes.close |= less != more
        return passes

    def judge(nodes: Nodes) -> tuple[list[int], int]:
        found: list[tuple[int, float, list[int]]] = []

        def visit(node: int, likely: float) -> None:
            path, target = nodes.path(node), nodes.target(node)
            found.append((len(path), likely, path))
            for child in nodes.children(node):
                token = nodes.tokens[child]
                if target[token] > 0 and fitting(nodes, target, token):
                    visit(child, likely + float(target[token].log()))

        visit(0, 0.0)
        *_, rival, best = [(0, 0.0, []), *sorted(found, key=lambda each: each[:2])]
        nodes.close |= rival[0] == best[0] and best[1] - rival[1] < CLOSE
        return best[2], nodes.likeliest(best[2][-1])

    return judge


def _ratio(target: Tensor, draft: Tensor, token: int, chance: float) -> float:
    """How likely a child is accepted; one that the draft gives no probability counts as fixed."""
    offered = float(draft[token])
    return min(1.0, chance * float(target[token]) / (offered if offered > 0 else 1.0))


def _refused(
    target: Tensor, draft: Tensor, token: int, chance: float, replacement: bool
) -> tuple[Tensor, Tensor, float]:
    """Target and draft `[V]` and chance of a node once the child with `token` is refused."""
    certain = torch.zeros_like(draft)
    certain[token] = 1.0
    left = (chance * target - (draft if draft[token] > 0 else certain)).clamp_min(0)
    total = float(left.sum())
    missing = total + 1 - chance
    others = draft if replacement else _scaled(draft, token, 0.0)
    rest = float(others.sum())
    return (
        left / total if total > 0 else target,
        others / rest if rest > 0 else others,
        (total / missing if missing > 0 else 1.0),
    )


def _scaled(weights: Tensor, token: int, share: float) -> Tensor:
    """`[V]` with one entry times `share`."""
    scaled = weights.clone()
    scaled[token] *= share
    return scaled
