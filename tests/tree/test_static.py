"""StaticTree: what it accepts, what it refuses, and its shape."""

from __future__ import annotations

import pytest
import torch

from specdec.core import TreePolicy
from specdec.tree.best_first import BestFirst
from specdec.tree.shallow import first_levels
from specdec.tree.static import StaticTree, chain


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], r"tree has no paths; expected at least \[\[0\]\]"),
        ([[]], r"tree path \[\] is not a list of ranks"),
        ([[-1]], r"tree path \[-1\] is not a list of ranks \(each 0 or more\)"),
        ([[0], [1, 0]], r"tree path \[1, 0\] has no parent; add \[1\]"),
        ([[0, 0]], r"tree path \[0, 0\] has no parent; add \[0\]"),
        ([[0], [2]], r"tree path \[2\] has no better sibling; add \[1\]"),
        ([[0], [0, 1]], r"tree path \[0, 1\] has no better sibling; add \[0, 0\]"),
    ],
)
def test_refuses(paths: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticTree(paths)


def test_shape() -> None:
    tree = StaticTree([[1, 0], [0], [0, 0], [0, 1], [1], [0, 1, 0], [0]])  # any order, a repetition
    assert isinstance(tree, TreePolicy)
    assert (tree.depth, tree.max_nodes, tree.fixed_shape) == (3, 7, True)
    assert [tree.branching(level) for level in range(3)] == [2, 2, 1]
    kept, expanded = tree.grow(0, torch.zeros(2, 1, 2))
    assert (kept.tolist(), expanded.tolist()) == ([[0, 1]] * 2, [[0, 1]] * 2)
    kept, expanded = tree.grow(1, torch.zeros(2, 2, 2))
    assert (kept.tolist(), expanded.tolist()) == ([[0, 1, 2]] * 2, [[1]] * 2)
    kept, expanded = tree.grow(2, torch.zeros(2, 1, 1))
    assert (kept.tolist(), expanded.tolist()) == ([[0]] * 2, [[]] * 2)
    assert tree.prune(torch.zeros(2, 6)) is None


def test_chain() -> None:
    tree = chain(3)
    assert (tree.depth, tree.max_nodes) == (3, 4)
    with pytest.raises(ValueError, match=r"chain length is 0; expected at least 1 \(drafter=none"):
        chain(0)


def test_replacement_is_true_or_false() -> None:
    assert not StaticTree([[0]]).replacement
    assert first_levels(StaticTree([[0], [0, 0]], replacement=True), 1).replacement  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"tree[.]replacement is 'yes'; expected true or false"):
        StaticTree([[0]], replacement="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_nodes": 1}, "tree.max_nodes is 1; expected at least 2"),
        ({"depth": 0}, "tree.depth is 0; expected at least 1"),
        ({"top_k": 0}, "tree.top_k is 0; expected at least 1"),
        ({"width": 0}, "tree.width is 0; expected at least 1, or null for top_k"),
    ],
)
def test_best_first_refuses(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BestFirst(**settings)
