"""How many nodes pay: means, the best size against all sizes, slots that decide together, and what tries may cost."""

from __future__ import annotations

import random

import pytest

from specdec.tree.budget import Account, StepCost, best_size, budget, chances
from specdec.tree.cost import CostCurve

STEPS = CostCurve((1, 8, 9, 64), (1.0, 1.05, 1.5, 2.0))  # rows come in eights


def line(row: float, level: float = 0.0) -> StepCost:
    return StepCost(CostCurve.make(row), level)


def test_running_means_of_what_was_verified() -> None:
    account = Account(0.5)
    assert chances(account, None) is None
    account.observe([0, 1, 3], 4)
    account.observe([0], 2)  # nodes 2 and 3 were not there
    account.observe([0, 1], 3)
    assert account.hits == [1.25, 0.0, 1.0]
    assert account.seen == [1.75, 1.5, 1.0]
    first = 1.25 / 1.75
    second = first / 2.5
    assert chances(account, None) == pytest.approx([first, second, (1 + second) / 2])


def test_a_node_that_had_bad_luck_is_taken_in_again() -> None:
    account, cost, levels = Account(0.9), line(0.1), [0] * 4
    for path in ([0, 1], [0], *[[0, 1]] * 20):
        account.observe(path, 4 if len(account.hits) == 0 or path == [0] else 2)
    sizes = budget([chances(account, None)], levels, 1, cost, Account(0.9), 0.0)
    assert sizes[0] > 2  # one after the other
    for _ in range(30):
        account.observe([0, 1], 4)
    assert budget([chances(account, None)], levels, 1, cost, Account(0.9), 0.0) == [2]


def test_nothing_is_expected_where_nothing_was_accepted() -> None:
    account = Account(0.9)
    for _ in range(2):
        account.observe([0], 4)
    assert chances(account, None) == [0.0] * 3


def test_what_all_have_seen_counts_until_a_slot_has_seen_more() -> None:
    others = Account(0.9)
    for _ in range(30):
        others.observe([0, 1], 3)
    new = Account(0.9)
    found = chances(new, others)
    assert found is not None
    assert found[0] == pytest.approx(1.0)
    assert found[1] < 0.3
    for _ in range(4):
        new.observe([0], 2)
    found = chances(new, others)
    assert found is not None
    assert found[0] < 0.15  # the text is harder, and so is what was not verified
    assert found[1] < 0.15
    for _ in range(30):
        new.observe([0, 1, 2], 3)
    found = chances(new, others)
    assert found is not None
    assert min(found) > 0.7


@pytest.mark.parametrize("slots", [1, 5])
def test_no_size_is_better(slots: int) -> None:
    draw = random.Random(slots)
    for _ in range(300):
        known = [draw.choice([0.0, draw.random()]) for _ in range(draw.randrange(12))]
        levels = [0]
        for _ in known:
            levels.append(levels[-1] + draw.randrange(2))
        cost = StepCost(draw.choice([STEPS, CostCurve.make(draw.random() / 10)]), draw.choice([0.0, 0.3]))
        rates = [(1 + sum(known[: n - 1])) / cost(slots * n, levels[n - 1]) for n in range(1, len(known) + 2)]
        size = best_size(known, levels, slots, cost)
        assert rates[size - 1] == pytest.approx(max(rates))
        assert size == 1 or known[size - 2] > 0  # no node that brings nothing


def test_a_better_slot_gets_more_nodes() -> None:
    payer = Account(0.9)
    sizes = budget([[0.9, 0.8, 0.7], [0.5, 0.02, 0.01], [0.0] * 3], [0, 1, 2, 3], 1, line(0.05), payer, 0.0)
    assert sizes == [4, 2, 1]


def test_one_slot_does_not_pay_the_drafts_of_all() -> None:
    good, bad = [0.9, 0.8, 0.7], [0.0] * 3
    levels, cost = [0, 1, 2, 3], line(0.02, level=0.3)
    assert budget([good], levels, 1, cost, Account(0.9), 0.0) == [4]
    assert budget([good] * 6, levels, 1, cost, Account(0.9), 0.0) == [4] * 6
    assert budget([good] + [bad] * 9, levels, 1, cost, Account(0.9), 0.0) == [1] * 10


def test_more_sequences_make_rows_dearer() -> None:
    known = [0.6, 0.3, 0.15, 0.08, 0.04]
    sizes = [budget([known], [0] * 6, copies, line(0.02), Account(0.9), 0.0)[0] for copies in (1, 4, 16, 64)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_free_rows_are_all_taken() -> None:
    assert budget([[0.0] * 4, None], [0] * 5, 1, line(0.0), Account(0.9), 0.0) == [5, 5]


@pytest.mark.parametrize("allowance", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("copies", [1, 3])
def test_tries_cost_no_more_than_the_allowance(members: int, copies: int, allowance: float) -> None:
    payer, cost, levels = Account(0.9), line(0.03, level=0.2), [0, 1, 2, 2, 3]
    rows = members * copies
    plain, full = cost(rows, 0), cost(5 * rows, 3)
    spent = tries = 0.0
    for step in range(1, 2000):
        sizes = budget([[0.0] * 4] * members, levels, copies, cost, payer, allowance)
        assert sizes in ([1] * members, [5] * members)
        tries += sizes[0] == 5
        spent += (full - plain) * (sizes[0] == 5)
        assert spent <= allowance * plain * step + 1e-9
    assert tries == (pytest.approx(allowance * plain * 2000 / (full - plain), rel=0.5) if allowance else 0)
