"""What a tree should bring: expected tokens a step, and tokens a second over plain decoding's.

A node is accepted if all nodes on its path are. Given the chance, by depth and rank, that this child of an accepted
node is the accepted one, a step's expected tokens are the sum over nodes, the root included, of the products of the
chances along their paths (Chen et al., Sequoia, arXiv 2402.12374, with positional acceptance). For a chain of g tokens,
each right with chance a, that is (1 - a^(g + 1)) / (1 - a) (Leviathan et al., arXiv 2211.17192, equation 1).

A step costs, in plain steps of a batch of B, what the curve says of its rows over that of B rows, and what drafting its
levels costs; with a chain, chances a and free rows this is their theorem 3.8: (1 - a^(g + 1)) / ((1 - a) (g c + 1)).
The speed-up is tokens over cost. Chances are taken to be independent of the text before, costs of rows to be the same
for many small trees and few large ones, and of a level to be the same at every batch size; the loop's own time is left
out. What is wrong with that in a run is told by putting measured terms in, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from specdec.tree.cost import CostCurve
from specdec.tree.sequoia import Table

Chances = tuple[tuple[float, ...], ...]  # by depth of the child, the last row for all below; by rank
TOLERANCE = 0.1  # parts of a speed-up that need no explanation
LENGTH, VERIFY, PROPOSE, REST = "accepted length", "verify cost", "propose cost", "remainder"


class Terms(NamedTuple):
    """Of a speed-up.

    Attributes:
        length: tokens a step.
        verify, propose: of a step of the batch, in plain steps of it: verify, accept and commit; draft.
        rest: a factor on the speed for all else, 1 in a prediction.
    """

    length: float
    verify: float
    propose: float
    rest: float = 1.0

    @property
    def speedup(self) -> float:
        """Tokens a second over plain decoding's."""
        return self.length * self.rest / (self.verify + self.propose)


def expected_length(paths: Sequence[Sequence[int]], chances: Chances) -> float:
    """Tokens a step of a tree given by the paths of ranks of all its nodes but the root."""
    return 1 + sum(math.prod(_chance(chances, depth, rank) for depth, rank in enumerate(path)) for path in paths)


def predicted(
    paths: Sequence[Sequence[int]], chances: Chances, curve: CostCurve, draft_cost: float, batch: int
) -> Terms:
    """Of such a tree.

    Args:
        draft_cost: of a level, in plain steps.
        batch: sequences in a step.
    """
    rows, depth = batch * (len(paths) + 1), max(map(len, paths), default=0)
    return Terms(expected_length(paths, chances), curve(rows) / curve(batch), depth * draft_cost)


def best_tree(
    nodes: int, chances: Chances, curve: CostCurve, draft_cost: float, batch: int, max_depth: int
) -> tuple[int, Terms] | None:
    """Depth and terms of the fastest tree of exactly so many nodes, the root included; None where there is none: too
    few ranks are known for so many children."""
    found: tuple[int, Terms] | None = None
    for depth in range(1, min(max_depth, nodes - 1) + 1):
        length = Table(chances, nodes, depth).tokens(nodes)
        terms = Terms(length, curve(batch * nodes) / curve(batch), depth * draft_cost)
        if length > 0 and (found is None or terms.speedup > found[1].speedup):
            found = depth, terms
    return found


def factors(expected: Terms, measured: Terms) -> dict[str, float]:
    """By how much every term changes the speed-up when its measured value is put in, in this order. Their product is
    the measured speed-up over the expected one."""
    length, verify, propose = measured.length, measured.verify, measured.propose
    return {
        LENGTH: length / expected.length,
        VERIFY: (expected.verify + expected.propose) / (verify + expected.propose),
        PROPOSE: (verify + expected.propose) / (verify + propose),
        REST: measured.rest / expected.rest,
    }


def off(found: Mapping[str, float]) -> list[str]:
    """Of `factors`, the names of those that explain a difference, the largest first: none where neither the speed-up
    nor a term is off by more than a tenth, else all that are off by at least half as much as the one that is most."""
    sizes = {name: abs(math.log(factor)) for name, factor in found.items()}
    limit, largest = math.log(1 + TOLERANCE), max(sizes.values())
    if abs(math.log(math.prod(found.values()))) <= limit and largest <= limit:
        return []
    return sorted((name for name, size in sizes.items() if size >= largest / 2), key=lambda name: -sizes[name])


def _chance(chances: Chances, depth: int, rank: int) -> float:
    row = chances[min(depth, len(chances) - 1)]
    return row[rank] if rank < len(row) else 0.0
