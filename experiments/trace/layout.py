"""Where a tree's nodes are drawn: a column a level, a row a leaf. Nothing overlaps, and no line crosses a node."""

from __future__ import annotations

from collections.abc import Sequence


def rows(parents: Sequence[int], first: int | None = None) -> list[int]:
    """The row of every node. A node is in the row of its first child, so that likely paths, which come first, are
    straight lines; the others branch off below.

    Args:
        parents: of every node, -1 for a root; a parent comes before its children. Several roots are below each other.
        first: a node to be drawn before its siblings, if any.
    """
    children: list[list[int]] = [[] for _ in parents]
    roots: list[int] = []
    for node, parent in enumerate(parents):
        siblings = roots if parent < 0 else children[parent]
        siblings.insert(0 if node == first else len(siblings), node)
    found, row = [0] * len(parents), 0
    waiting = [(root, True) for root in reversed(roots)]
    used = False  # whether something is in `row`
    while waiting:
        node, below = waiting.pop()
        row += below and used
        used = True
        found[node] = row
        waiting += [(child, place > 0) for place, child in reversed(list(enumerate(children[node])))]
    return found
