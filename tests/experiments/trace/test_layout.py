"""Where nodes are drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.experiments.trace.layout import rows


@pytest.mark.parametrize(
    ("parents", "first", "expected"),
    [
        ([], None, []),
        ([-1], None, [0]),
        ([-1, 0, 1, 2], None, [0, 0, 0, 0]),  # a chain is a line
        ([-1, 0, 0, 0], None, [0, 0, 1, 2]),
        ([-1, 0, 0, 1, 1, 2], None, [0, 0, 2, 0, 1, 2]),
        ([-1, 0, 0, 1, 1, 2, 2], 6, [0, 0, 2, 0, 1, 3, 2]),  # the last one before its sibling
        ([-1, 0, 0, 0], 3, [0, 1, 2, 0]),
        ([-1, -1, 0, 1, 1], None, [0, 1, 0, 1, 2]),  # riders: several roots
    ],
)
def test_rows_by_hand(parents: list[int], first: int | None, expected: list[int]) -> None:
    assert rows(parents, first) == expected


@given(st.lists(st.integers(0, 10**6), max_size=70), st.booleans())
def test_nothing_overlaps(numbers: list[int], last_first: bool) -> None:
    parents = [-1, *(number % (j + 1) for j, number in enumerate(numbers))]
    found = rows(parents, len(numbers) if last_first else None)
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    assert len(set(zip(depths, found, strict=True))) == len(parents)
    leaves = [j for j in range(len(parents)) if j not in parents]
    assert sorted(found[j] for j in leaves) == list(range(len(leaves)))
    for node in set(parents) - {-1}:  # in line with the first child, and above the others
        assert found[node] == min(found[j] for j, parent in enumerate(parents) if parent == node)
