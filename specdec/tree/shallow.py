"""The first levels of another policy's trees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec.core import TreePolicy, draws_with_replacement


@dataclass(frozen=True, slots=True)
class Shallow:
    """See the module. Where that policy keeps nodes in their order, these trees are its trees' first nodes.

    Attributes:
        policy: the other one.
        depth: levels below the root, at most its own.
    """

    policy: TreePolicy
    depth: int

    @property
    def max_nodes(self) -> int:
        """See TreePolicy."""
        return self.policy.max_nodes

    @property
    def fixed_shape(self) -> bool:
        """See TreePolicy."""
        return self.policy.fixed_shape

    @property
    def replacement(self) -> bool:
        """See TreePolicy."""
        return draws_with_replacement(self.policy)

    def branching(self, level: int) -> int:
        """See TreePolicy."""
        return self.policy.branching(level)

    def grow(self, level: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See TreePolicy."""
        return self.policy.grow(level, scores)

    def prune(self, scores: Tensor) -> Tensor | None:
        """See TreePolicy."""
        return self.policy.prune(scores)


def first_levels(policy: TreePolicy, levels: int | None) -> TreePolicy:
    """A policy of at most so many levels; None for all of them."""
    return policy if levels is None or levels >= policy.depth else Shallow(policy, levels)
