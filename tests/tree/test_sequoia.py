"""The dynamic programme against every tree there is, what its choice brings, and the files it reads."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from specdec import registry
from specdec.core import TreePolicy
from specdec.tree.cost import CostCurve
from specdec.tree.sequoia import Chances, Table, choose, read_chances, sequoia
from specdec.tree.static import StaticTree

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "curve.json"
VECTORS: dict[str, Chances] = {
    "falling": ((0.6, 0.2, 0.05),),
    "flat": ((0.3, 0.3, 0.3),),
    "rising": ((0.1, 0.2, 0.5),),  # a better sibling comes first all the same
    "sure": ((1.0, 0.0, 0.0),),
    "none": ((0.0, 0.0),),
    "one rank": ((0.7,),),
    "by depth": ((0.9, 0.05), (0.2, 0.3, 0.1), (0.8,)),
    "deeper is better": ((0.2, 0.1, 0.1), (0.3, 0.1, 0.1), (0.9, 0.05, 0.0)),
}


@cache
def forests(nodes: int, depth: int, ranks: int) -> list[tuple[tuple[int, ...], ...]]:
    """Paths of all ordered trees of `nodes` nodes below a root, by brute force: any node gets the next child."""
    found: set[tuple[tuple[int, ...], ...]] = {()}
    for _ in range(nodes):
        found = {tuple(sorted((*paths, new))) for paths in found for new in _places(paths, depth, ranks)}
    return sorted(found)


def _places(paths: tuple[tuple[int, ...], ...], depth: int, ranks: int) -> Iterator[tuple[int, ...]]:
    for parent in ((), *paths):
        rank = sum(path[:-1] == parent for path in paths if path)
        if len(parent) < depth and rank < ranks:
            yield (*parent, rank)


def naive_tokens(paths: tuple[tuple[int, ...], ...], chances: Chances) -> float:
    """Node by node; -inf where there is no chance for a rank."""
    total = 1.0
    for path in paths:
        product = 1.0
        for depth, rank in enumerate(path):
            row = chances[min(depth, len(chances) - 1)]
            if rank >= len(row):
                return float("-inf")
            product *= row[rank]
        total += product
    return total


def test_the_enumeration_is_complete() -> None:
    catalan = [1, 1, 2, 5, 14, 42, 132]
    assert [len(forests(n, 9, 9)) for n in range(7)] == catalan


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("vector", VECTORS)
def test_no_tree_is_better(vector: str, depth: int) -> None:
    chances = VECTORS[vector]
    table = Table(chances, 7, depth)
    for nodes in range(1, 8):
        every = [naive_tokens(paths, chances) for paths in forests(nodes - 1, depth, 3)]
        assert table.tokens(nodes) == pytest.approx(max(every, default=float("-inf")), abs=1e-12)
        if table.tokens(nodes) > 0:
            paths = table.paths(nodes)
            assert len(set(paths)) == nodes - 1
            assert max(map(len, paths), default=0) <= depth
            assert naive_tokens(paths, chances) == pytest.approx(table.tokens(nodes), abs=1e-12)


@pytest.mark.parametrize("vector", ["falling", "flat", "by depth"])
def test_more_nodes_and_more_levels_bring_no_less(vector: str) -> None:
    tables = [Table(VECTORS[vector], 20, depth) for depth in range(1, 7)]
    for table in tables[2:]:
        lengths = [table.tokens(n) for n in range(1, 21)]
        possible = [length for length in lengths if length > 0]
        assert len(possible) > 4
        assert possible == sorted(lengths[: len(possible)])  # a larger tree than has room at all has -inf
    for shallow, deep in pairwise(tables):
        assert all(deep.tokens(n) >= shallow.tokens(n) for n in range(1, 21))


def test_expected_tokens_are_those_of_walks() -> None:
    """A walk takes the child of rank k with its chance, and ends where the tree has none."""
    chances = VECTORS["by depth"]
    table = Table(chances, 12, 4)
    known, draw, steps = set(table.paths(12)), random.Random(0), 40_000
    emitted = squares = 0
    for _ in range(steps):
        at: tuple[int, ...] = ()
        while True:
            row = chances[min(len(at), len(chances) - 1)]
            rank = draw.choices(range(len(row) + 1), [*row, 1 - sum(row)])[0]
            if (*at, rank) not in known:
                break
            at = (*at, rank)
        emitted += len(at) + 1
        squares += (len(at) + 1) ** 2
    mean = emitted / steps
    error = ((squares / steps - mean**2) / steps) ** 0.5
    assert abs(mean - table.tokens(12)) < 4.5 * error  # 1 in 150,000


@pytest.mark.parametrize("draft_cost", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("row_cost", [0.0, 0.02, 0.3])
def test_the_choice_is_the_best_of_all_sizes_and_depths(row_cost: float, draft_cost: float) -> None:
    for chances in VECTORS.values():
        choice = choose(chances, CostCurve.make(row_cost), 7, 3, draft_cost)
        every = [
            naive_tokens(paths, chances) / (1 + row_cost * nodes + draft_cost * max(map(len, paths)))
            for nodes in range(1, 7)
            for paths in forests(nodes, 3, 3)
        ]
        assert choice.tokens / choice.cost == pytest.approx(max(every), abs=1e-9)
        assert choice.tokens == pytest.approx(naive_tokens(choice.paths, chances))


def test_dear_rows_make_small_trees_and_dear_drafts_flat_ones() -> None:
    chances = ((0.5, 0.2, 0.1),)
    sizes = [sequoia(chances, row_cost, 32, 8).max_nodes for row_cost in (0.0, 0.01, 0.05, 0.5)]
    assert sizes[0] == 32
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 6
    depths = [sequoia(chances, 0.0, 32, 8, draft_cost=cost).depth for cost in (0.0, 0.05, 0.5)]
    assert depths[0] > depths[-1]
    assert depths == sorted(depths, reverse=True)


def test_a_policy_of_fixed_shape() -> None:
    tree = sequoia([0.6, 0.2], 0.02, 8, 3)
    assert isinstance(tree, StaticTree)
    assert isinstance(tree, TreePolicy)
    assert tree.fixed_shape
    assert tree.max_nodes <= 8
    assert tree.depth <= 3
    assert sequoia([[0.9], [0.1, 0.1]], 0.0, 4, 2).paths == ((0,), (0, 0), (0, 1))


def test_the_yaml_in_conf_is_what_was_measured() -> None:
    spec, measured = registry.read_yaml("tree", "sequoia"), json.loads(MEASURED.read_text())
    assert spec["acceptance"] == measured["acceptance"]
    assert spec["draft_cost"] == measured["draft_cost"]
    line, curve = CostCurve.make(spec["curve"]), CostCurve.make(MEASURED)
    assert all(line(n) == pytest.approx(curve(n), rel=0.06) for n in range(1, 65))
    tree = registry.build("tree", "sequoia")
    assert isinstance(tree, StaticTree)
    assert 2 < tree.max_nodes <= 32


def test_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    measured: dict[str, Any] = {"nodes": [1, 8, 16], "cost": [1.0, 1.1, 3.0], "batch": 1}
    file.write_text(json.dumps(measured))
    assert sequoia([0.8, 0.1], str(file), 16, 16).max_nodes == 8
    with pytest.raises(ValueError, match=r"has no `acceptance`; measure it with: specdec bench curve drafter="):
        sequoia(str(file))
    file.write_text(json.dumps(measured | {"acceptance": [0.8, 0.1], "draft_cost": 0.3}))
    from_file = sequoia(str(file), str(file), 16, 16)
    assert from_file.paths == sequoia([0.8, 0.1], str(file), 16, 16, draft_cost=0.3).paths
    assert from_file.depth < sequoia([0.8, 0.1], str(file), 16, 16, draft_cost=0.0).depth


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"acceptance": []}, r"tree.acceptance is empty; expected the chance of every rank"),
        ({"acceptance": [[]]}, r"tree.acceptance has the row \[\]"),
        ({"acceptance": [0.7, 0.4]}, r"row \[0.7, 0.4\]; expected chances by rank, .* their sum at most 1"),
        ({"acceptance": [[0.7], [-0.1]]}, r"row \[-0.1\]; expected chances"),
        ({"acceptance": ["a"]}, r"row \['a'\]; expected chances"),
        ({"acceptance": [0.5, [0.1]]}, r"row \[0.5, \[0.1\]\]; expected chances"),
        ({"max_nodes": 1}, "tree.max_nodes is 1; expected at least 2"),
        ({"max_depth": 0}, "tree.max_depth is 0; expected at least 1"),
        ({"draft_cost": -1}, "tree.draft_cost is -1; expected at least 0"),
        ({"curve": -0.1}, "a row's cost is -0.1; expected at least 0"),
        ({"curve": "nowhere.json"}, r"cost curve 'nowhere.json' cannot be read .*specdec bench curve"),
    ],
)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequoia(**{"acceptance": [0.6, 0.1], **settings})


def test_a_row_of_chances_alone_is_for_every_depth() -> None:
    assert read_chances([0.5, 0]) == read_chances([[0.5, 0]]) == ((0.5, 0.0),)
