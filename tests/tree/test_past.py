"""What became of trees: means by node, what is known of any draft and of one that follows a good one."""

from __future__ import annotations

import random

import pytest

from specdec.tree.past import RIGHT, Account, Past


def test_running_means_of_what_was_verified() -> None:
    account = Account(0.5)
    assert account.means() == []
    account.observe([0, 1, 3], 4)
    account.observe([0], 2)  # nodes 2 and 3 were not there
    account.observe([0, 1], 3)
    assert account.hits == [1.25, 0.0, 1.0]
    assert account.seen == [1.75, 1.5, 1.0]
    first = 1.25 / 1.75
    second = first / 2.5
    assert account.means() == pytest.approx([first, second, (1 + second) / 2])
    assert [account.known(node) for node in (1, 3, 4)] == [1.75, 1.0, 0.0]


def test_two_full_trees_are_something_to_know() -> None:
    past = Past(0.9)
    for known in (False, False, True, True):
        assert past.known == known
        past.observe(0, [0], 4)
    assert past.chances(0) == [0.0] * 3
    assert past.chances(RIGHT) == [0.0] * 3


def test_a_tree_of_one_node_says_nothing() -> None:
    past = Past(0.9)
    past.observe(0, [0], 1)
    assert past.changes == 0
    assert not past.known


def test_what_follows_a_good_draft_is_judged_by_itself() -> None:
    past = Past(0.99)
    chance = random.Random(1)
    for _ in range(400):
        right = chance.randrange(RIGHT + 3)
        past.observe(right, [0, 1, 2] if right >= 2 else [0], 4)
    for right in range(RIGHT + 3):
        first, second, third = past.chances(right)
        assert (first > 0.85 and second > 0.85) if right >= 2 else (first < 0.15 and second < 0.15)
        assert third < 0.15


def test_what_followed_any_draft_counts_until_more_is_known() -> None:
    past = Past(0.99)
    for _ in range(30):
        past.observe(0, [0, 1], 3)
    assert past.chances(1)[0] > 0.9
    for _ in range(12):
        past.observe(1, [0], 2)
    found = past.chances(1)
    assert found[0] < 0.4
    assert found[1] < 0.3  # what was not verified has become less likely with it
    assert past.chances(0)[0] > 0.8
