"""The likeliest nodes of several sources, against every prefix counted by hand."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from specdec.tree.likeliest import by_frequency, likeliest


def prefixes(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    """Every node below the root as its path."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths[1:]


PATHS = st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=12)


@given(PATHS, st.integers(1, 12))
def test_the_most_frequent_beginnings(paths: list[list[int]], max_nodes: int) -> None:
    counts = Counter(tuple(path[:n]) for path in paths for n in range(1, len(path) + 1))
    tokens, parents = by_frequency(7, paths, max_nodes)
    found = prefixes(tokens, parents)
    assert (tokens[0], parents[0]) == (7, -1)
    assert all(-1 < parent < j for j, parent in enumerate(parents) if j)
    assert len(found) == len(set(found)) == min(max_nodes - 1, len(counts))
    assert [counts[path] for path in found] == sorted(counts.values(), reverse=True)[: len(found)]


def test_of_equals_the_earlier_path_comes_first() -> None:
    assert by_frequency(0, [[3, 1], [2, 1]], 4) == ([0, 3, 2, 1], [-1, 0, 0, 1])
    assert by_frequency(0, [[2, 1], [3, 1], [3, 4]], 4) == ([0, 3, 2, 1], [-1, 0, 0, 1])
    assert by_frequency(5, [], 4) == ([5], [-1])


CHAINS = {"a": (0.9, [1, 2, 3]), "b": (0.5, [1, 4]), "c": (0.2, [9])}


def one_after_the_other(source: tuple[str, int]) -> list[tuple[float, int, tuple[str, int]]]:
    name, place = source
    probability, tokens = CHAINS[name]
    return [(probability, tokens[place], (name, place + 1))] if place < len(tokens) else []


def test_sources_share_nodes_and_the_budget() -> None:
    sources = [(1.0, ("a", 0)), (1.0, ("b", 0)), (1.0, ("c", 0))]
    tokens, parents = likeliest(0, sources, one_after_the_other, 99)
    assert prefixes(tokens, parents) == [(1,), (1, 2), (1, 2, 3), (1, 4), (9,)]  # 0.9 0.81 0.73 0.25 0.2
    assert prefixes(*likeliest(0, sources, one_after_the_other, 5)) == [(1,), (1, 2), (1, 2, 3), (1, 4)]
    assert prefixes(*likeliest(0, sources, one_after_the_other, 99, least=0.25)) == [(1,), (1, 2), (1, 2, 3), (1, 4)]
    lighter = [(0.1, ("a", 0)), *sources[1:]]
    assert prefixes(*likeliest(0, lighter, one_after_the_other, 4)) == [(1,), (1, 4), (9,)]


def test_a_source_that_cannot_contribute_is_not_asked() -> None:
    asked = []

    def children(source: str) -> list[tuple[float, int, str]]:
        asked.append(source)
        return [(1.0, 3, source + "+")]

    likeliest(0, [(1.0, "sure"), (0.5, "vague")], children, 4)
    assert "vague" not in asked
