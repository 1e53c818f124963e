"""Trees whose shape is fixed beforehand: chains, and lists of paths in the format of Medusa's `medusa_choices`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class StaticTree:
    """A tree given by its paths: `[0, 1]` is the second-best child of the best child of the root.

    Args:
        paths: every node's path of ranks from the root; a node's parent must be listed too, and so must its better
            siblings (children are drawn best first, so a gap would throw a drawn child away).
        replacement: where children are drawn, each is drawn from the whole distribution (SpecInfer's multi-step
            speculative sampling, arXiv 2305.09781), not from what its siblings have left.

    Attributes:
        paths: the same as tuples, level by level.
        replacement: as given.

    Raises:
        ValueError: there is no path, or a parent or a better sibling is missing; the message names the path. Or
            `replacement` is not true or false.
    """

    fixed_shape = True

    def __init__(self, paths: Sequence[Sequence[int]], replacement: bool = False):
        if not all(isinstance(p, Sequence) and all(type(rank) is int for rank in p) for p in paths):
            raise ValueError(f"tree paths are {paths!r}; expected a list of lists of ranks, as in [[0], [1], [0, 0]]")
        nodes = sorted({tuple(p) for p in paths}, key=lambda p: (len(p), p))
        known = set(nodes)
        if not nodes:
            raise ValueError("tree has no paths; expected at least [[0]] (drafter=none decodes without drafts)")
        for path in nodes:
            needed = path[:-1] if path and len(path) > 1 else None
            if not path or min(path) < 0:
                raise ValueError(f"tree path {list(path)} is not a list of ranks (each 0 or more)")
            if needed is not None and needed not in known:
                raise ValueError(f"tree path {list(path)} has no parent; add {list(needed)}")
            if path[-1] and (*path[:-1], path[-1] - 1) not in known:
                raise ValueError(f"tree path {list(path)} has no better sibling; add {[*path[:-1], path[-1] - 1]}")
        if type(replacement) is not bool:
            raise ValueError(f"tree.replacement is {replacement!r}; expected true or false")
        self.replacement = replacement
        self.depth = max(map(len, nodes))
        self.max_nodes = len(nodes) + 1
        self.paths = tuple(nodes)
        self._levels = [[p for p in nodes if len(p) == level + 1] for level in range(self.depth)]
        self._parents = {path[:-1] for path in nodes}
        self._choices: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def branching(self, level: int) -> int:
        """See TreePolicy."""
        return max(path[-1] for path in self._levels[level]) + 1

    def grow(self, level: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See TreePolicy: the same choice for every sequence, whatever the scores."""
        key = (level, scores.shape[2], scores.device)
        if key not in self._choices:
            self._choices[key] = self._choose(*key)
        kept, expanded = self._choices[key]
        return kept.expand(len(scores), -1), expanded.expand(len(scores), -1)

    def _choose(self, level: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`[1, M]` and `[1, F']`, as `grow`."""
        above: list[tuple[int, ...]] = [()] if level == 0 else self._levels[level - 1]
        frontier = [p for p in above if p in self._parents]
        kept = [frontier.index(p[:-1]) * width + p[-1] for p in self._levels[level]]
        expanded = [i for i, p in enumerate(self._levels[level]) if p in self._parents]
        return (
            torch.tensor([kept], dtype=torch.int64, device=device),
            torch.tensor([expanded], dtype=torch.int64, device=device),
        )

    def prune(self, scores: Tensor) -> Tensor | None:
        """See TreePolicy: nothing is taken away."""
        return None


def chain(length: int) -> StaticTree:
    """One path of `length` draft tokens."""
    if length < 1:
        raise ValueError(f"chain length is {length}; expected at least 1 (drafter=none decodes without drafts)")
    return StaticTree([[0] * depth for depth in range(1, length + 1)])


def comb(depth: int, width: int) -> StaticTree:
    """`width` children on every level, of which the first is expanded: it shows how often each rank is right."""
    if depth < 1 or width < 1:
        raise ValueError(f"a comb has depth {depth} and width {width}; expected at least 1 of both")
    return StaticTree([[0] * level + [rank] for level in range(depth) for rank in range(width)])
