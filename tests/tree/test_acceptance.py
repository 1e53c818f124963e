"""Chances by depth and rank from walks, by hand, and the file that `tree=sequoia` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdec.tree.acceptance import Walk, measured_acceptance, read_acceptance
from specdec.tree.sequoia import sequoia
from specdec.tree.static import comb


def test_where_all_nodes_have_as_many_children_it_is_the_share() -> None:
    """Of 10 walks with 3 children each: 5 took the first, 2 the second, 1 the third."""
    walks: list[tuple[Walk, int]] = [(([3, 0], [0]), 5), (([3, 0], [1]), 2), (([3, 0], [2]), 1), (([3], []), 2)]
    found = measured_acceptance(walks, least=1)
    assert found["acceptance"] == [pytest.approx([0.5, 0.2, 0.1])]
    assert found["places"] == [[10, 5, 3]]


def test_nodes_with_fewer_children_say_nothing_about_further_ranks() -> None:
    """8 walks at nodes with 1 child, 4 accepted; 4 at nodes with 2: the first twice, the second once.

    Rank 0: 6 of 12. Rank 1 was tried by the 2 that had one and took no other: 1 of 2, of the half that is left.
    """
    walks: list[tuple[Walk, int]] = [
        (([1, 0], [0]), 4), (([1], []), 4), (([2, 0], [0]), 2), (([2, 0], [1]), 1), (([2], []), 1),
    ]  # fmt: skip
    found = measured_acceptance(walks, least=1)
    assert found["acceptance"] == [pytest.approx([0.5, 0.25])]
    assert found["places"] == [[12, 2]]


def test_a_row_never_adds_up_to_more_than_1() -> None:
    """Accepted over offered would be 0.9 + 0.8."""
    walks: list[tuple[Walk, int]] = [(([1, 0], [0]), 9), (([1], []), 1), (([2, 0], [1]), 4), (([2, 0], [0]), 1)]
    (row,) = measured_acceptance(walks, least=1)["acceptance"]
    assert row == pytest.approx([10 / 15, 5 / 15])
    assert sum(row) <= 1 + 1e-6


def test_depths_that_few_walks_reach_share_a_row() -> None:
    """100 walks at depth 1, 60 at depth 2, 30 at depth 3, 25 at depth 4."""
    walks: list[tuple[Walk, int]] = [
        (([1], []), 40), (([1, 1], [0]), 30), (([1, 1, 1], [0, 0]), 5), (([1, 1, 1, 1, 0], [0] * 4), 20),
        (([1, 1, 1, 1], [0] * 3), 5),
    ]  # fmt: skip
    found = measured_acceptance(walks, least=50)
    assert found["places"] == [[100], [60], [30 + 25]]
    assert found["acceptance"] == [[0.6], [0.5], [round(45 / 55, 6)]]
    assert measured_acceptance(walks, least=56)["places"] == [[100], [60 + 30 + 25]]
    assert measured_acceptance(walks, least=1000)["places"] == [[100 + 60 + 30 + 25]]


def test_nothing_drafted_is_no_chance() -> None:
    assert measured_acceptance([(([0], []), 7)]) == {"acceptance": [], "places": []}


def test_sequoia_reads_the_file(tmp_path: Path) -> None:
    """The second child pays at the root, where it is right as often as what follows the first one, and not below."""
    file = tmp_path / "method.json"
    file.write_text(json.dumps({"acceptance": [[0.5, 0.45], [0.6, 0.01]], "places": [[100, 50], [50, 20]]}))
    assert read_acceptance(file) == [[0.5, 0.45], [0.6, 0.01]]
    assert sequoia(str(file), curve=0.1, max_depth=2).paths == ((0,), (1,), (0, 0), (1, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "acceptance 'FILE' cannot be read"),
        ("[1, 2]", "'FILE' has no `acceptance`; measure it with: .* experiment=acceptance"),
        ('{"acceptance": []}', "'FILE' has no `acceptance`"),
        ('{"acceptance": [[0.7, 0.7]]}', "their sum at most 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "some.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message.replace("FILE", str(file))):
        sequoia(str(file))


def test_a_comb_offers_every_rank_on_every_level() -> None:
    tree = comb(2, 3)
    assert tree.paths == ((0,), (1,), (2,), (0, 0), (0, 1), (0, 2))
    with pytest.raises(ValueError, match="a comb has depth 0 and width 3; expected at least 1 of both"):
        comb(0, 3)
