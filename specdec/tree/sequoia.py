"""The static tree that writes the most tokens for what a step costs on this machine.

Chen et al., Sequoia, arXiv 2402.12374. Given the chance that the child of rank k is the accepted one (of an accepted
node's children one at most is), the expected number of emitted tokens is the sum over nodes of the product of the
chances along their paths, the root counted as 1. A dynamic programme finds its maximum for every size and depth: the
best tree below a node gives its first child some of the nodes, the rest to the children of higher ranks, and every
child's own best tree is known by then. A measured cost curve then says which size and depth pay the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from specdec.tree.acceptance import read_acceptance
from specdec.tree.cost import CostCurve, Curve, measured_draft_cost
from specdec.tree.static import StaticTree

ROUNDING = 1e-3  # of chances that are written with few digits
Ranks = tuple[int, ...]  # ranks from the root
Chances = tuple[tuple[float, ...], ...]  # by depth of the child, the last row for all below; by rank


class Choice(NamedTuple):
    """A tree, and what it should bring.

    Attributes:
        paths: of its nodes, as StaticTree takes them.
        tokens: emitted in a step, expected.
        cost: of a step, in steps of plain decoding.
    """

    paths: tuple[Ranks, ...]
    tokens: float
    cost: float


def sequoia(
    acceptance: Sequence[float] | Sequence[Sequence[float]] | str | Path,
    curve: Curve = None,
    max_nodes: int = 32,
    max_depth: int = 8,
    draft_cost: float | None = None,
) -> StaticTree:
    """The tree that `choose` finds, as a policy for any drafter that takes static trees.

    Args:
        acceptance: chance by rank that this child of an accepted node is the accepted one; or such a list for every
            depth (the last one holds below, too); or a file with it, of `specdec bench curve` or a run.
        curve: what a step costs: a file of `specdec bench curve`, what a node adds to a step, or None for nothing.
        max_nodes: most nodes of the tree, the root included.
        max_depth: most levels below the root.
        draft_cost: of drafting a level, in steps of plain decoding; None for what the curve's file says, or 0.

    Raises:
        ValueError: a setting is out of range, or a file is not what it should be.
    """
    if draft_cost is None:
        draft_cost = measured_draft_cost(curve)
    return StaticTree(choose(read_chances(acceptance), CostCurve.make(curve), max_nodes, max_depth, draft_cost).paths)


def read_chances(acceptance: Sequence[float] | Sequence[Sequence[float]] | str | Path) -> Chances:
    """Look over what `sequoia` was given.

    Raises:
        ValueError: it is not lists of chances that add up to 1 at most.
    """
    given: Sequence[Any] = read_acceptance(acceptance) if isinstance(acceptance, str | Path) else acceptance
    rows = [row if isinstance(row, Sequence) else None for row in given]
    chances = [tuple(given)] if None in rows else [tuple(row or ()) for row in rows]
    for row in chances:
        numbers = all(isinstance(p, int | float) and not isinstance(p, bool) and p >= 0 for p in row)
        if not row or not numbers or sum(row) > 1 + ROUNDING:
            raise ValueError(
                f"tree.acceptance has the row {list(row)!r}; expected chances by rank, each at least 0, their sum at "
                "most 1 (one child at most is accepted), and as many for every depth as there may be children"
            )
    if not chances:
        raise ValueError("tree.acceptance is empty; expected the chance of every rank, as in [0.6, 0.1, 0.05]")
    return tuple(tuple(float(p) for p in row) for row in chances)


@cache
def choose(chances: Chances, curve: CostCurve, max_nodes: int, max_depth: int, draft_cost: float) -> Choice:
    """The tree with the most expected tokens per cost, of all sizes from 2 and depths from 1. Of equals the smaller.

    Raises:
        ValueError: a number is out of range.
    """
    for name, value, least in (("max_nodes", max_nodes, 2), ("max_depth", max_depth, 1), ("draft_cost", draft_cost, 0)):
        if not value >= least:
            raise ValueError(f"tree.{name} is {value}; expected at least {least}")
    best: Choice | None = None
    for depth in range(1, min(max_depth, max_nodes - 1) + 1):
        table = Table(chances, max_nodes, depth)
        for nodes in range(2, max_nodes + 1):
            cost = curve(nodes) / curve(1) + depth * draft_cost
            tokens = table.tokens(nodes)
            if tokens > 0 and (best is None or tokens / cost > best.tokens / best.cost + 1e-12):
                best = Choice(table.paths(nodes), tokens, cost)
    assert best is not None  # two nodes are a tree whatever the chances
    return best


class Table:
    """The best trees of every size up to `max_nodes`, at most `depth` levels below the root.

    `_trees[d][n]`: most expected tokens of a tree of exactly n nodes whose root, an accepted node, is at depth d.
    `_children[d][k][m]`: most that m nodes bring as children of ranks k, k + 1, ... of such a root, and below these.
    `_first[d][k][m]`: how many of these m belong to the child of rank k. What is impossible is -inf.
    """

    def __init__(self, chances: Chances, max_nodes: int, depth: int):
        self._chances = chances
        never = np.full(max_nodes + 1, -np.inf)
        leaf = never.copy()
        leaf[1] = 1.0
        self._trees = [leaf]
        self._first: list[list[np.ndarray]] = []
        for level in reversed(range(depth)):
            below = self._trees[0]
            rest = never.copy()  # of the ranks behind the last one there is a chance for
            rest[0] = 0.0
            firsts: list[np.ndarray] = []
            for chance in reversed(_row(chances, level)):
                brings, first = never.copy(), np.zeros(max_nodes + 1, dtype=int)
                brings[0] = 0.0
                for m in range(1, max_nodes):
                    with np.errstate(invalid="ignore"):
                        each = chance * below[1 : m + 1] + rest[m - 1 :: -1]  # the child's nodes: 1 ... m
                    each = np.where(np.isnan(each), -np.inf, each)  # no chance of an impossible tree
                    first[m] = 1 + int(each.argmax())
                    brings[m] = each[first[m] - 1]
                rest = brings
                firsts.insert(0, first)
            tree = never.copy()
            tree[1:] = 1.0 + rest[:-1]
            self._trees.insert(0, tree)
            self._first.insert(0, firsts)

    def tokens(self, nodes: int) -> float:
        """Emitted in a step by the best tree of exactly `nodes` nodes, expected; -inf where there is none."""
        return float(self._trees[0][nodes])

    def paths(self, nodes: int) -> tuple[Ranks, ...]:
        """Of that tree's nodes."""
        found: list[Ranks] = []

        def walk(path: Ranks, size: int) -> None:
            left = size - 1
            for rank in range(len(_row(self._chances, len(path)))):
                if not left:
                    return
                share = int(self._first[len(path)][rank][left])
                found.append((*path, rank))
                walk((*path, rank), share)
                left -= share

        walk((), nodes)
        return tuple(found)


def _row(chances: Chances, depth: int) -> tuple[float, ...]:
    """Of the children of a node at `depth`."""
    return chances[min(depth, len(chances) - 1)]
