"""How many nodes pay: costs, one budget against all divisions there are, load, and what tries may cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest

from specdec.tree.budget import CREDIT, ENOUGH, StepCost, budget, divide, worths
from specdec.tree.cost import CostCurve
from specdec.tree.past import RIGHT, Past

EIGHTS = CostCurve((1, 8, 9, 64), (1.0, 1.05, 1.5, 2.0))  # rows come in eights
KNEE = CostCurve((1, 32, 64), (1.0, 1.01, 2.0))  # free rows, and then they cost


def line(row: float, level: float = 0.0) -> StepCost:
    return StepCost(CostCurve.make(row), level)


def past_of(trees: int, path: Sequence[int], size: int, decay: float = 0.9) -> Past:
    """Of sequences whose trees have all gone the same way."""
    past = Past(decay)
    past.purse = 0.0
    for _ in range(trees):
        past.observe(0, path, size)
    return past


def test_the_cost_of_a_step() -> None:
    cost = StepCost(EIGHTS, 0.1, CostCurve((1, 4), (1.0, 2.5)))
    assert cost.plain(4) == 2.5
    assert cost(4, 0, 4) == 2.5
    assert cost(9, 2, 4) == pytest.approx(2.5 * 1.2 + 1.5 - EIGHTS(4))
    assert StepCost(EIGHTS, 0.1)(9, 2, 4) == pytest.approx(EIGHTS(4) * 0.2 + 1.5)
    # rows beside: what theirs cost is not counted, what they make of the others is
    assert cost(4, 0, 4, beside=4) == 2.5
    assert cost(5, 0, 4, beside=4) == pytest.approx(2.5 + 0.45)


def rate(members: Sequence[Sequence[float]], sizes: Sequence[int], levels: Sequence[int], cost: StepCost) -> float:
    tokens = sum(1 + sum(known[: size - 1]) for known, size in zip(members, sizes, strict=True))
    return tokens / cost(sum(sizes), levels[max(sizes) - 1], len(members))


def draw_cost(draw: random.Random) -> StepCost:
    curve = draw.choice([EIGHTS, KNEE, CostCurve.make(draw.random() / 5)])
    sequences = draw.choice([None, CostCurve((1, 2), (1.0, 1.3))])
    return StepCost(curve, draw.choice([0.0, 0.1, 0.3]), sequences)


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_no_division_is_better(members: int) -> None:
    """All that there are, of chains as they are: no node is likelier than the one before it."""
    draw = random.Random(members)
    several = 0
    for _ in range(150):
        found = [sorted((draw.random() for _ in range(draw.randrange(5))), reverse=True) for _ in range(members)]
        levels = [0]
        for _ in range(4):
            levels.append(levels[-1] + draw.randrange(2))
        cost = draw_cost(draw)
        sizes = divide(found, levels, cost)
        assert all(1 <= size <= 1 + len(known) for size, known in zip(sizes, found, strict=True))
        best = max(rate(found, some, levels, cost) for some in product(*(range(1, len(known) + 2) for known in found)))
        assert rate(found, sizes, levels, cost) == pytest.approx(best)
        several += len(set(sizes)) > 1
    assert several > 30 or members == 1


def test_alone_no_size_is_better_whatever_the_chances() -> None:
    draw = random.Random(9)
    for copies in (1, 5):
        for _ in range(200):
            known = [draw.choice([0.0, draw.random()]) for _ in range(draw.randrange(12))]
            levels = [0]
            for _ in known:
                levels.append(levels[-1] + draw.randrange(2))
            cost = draw_cost(draw)
            rates = [
                (1 + sum(known[: n - 1])) / cost(copies * n, levels[n - 1], copies) for n in range(1, len(known) + 2)
            ]
            (size,) = divide([known], levels, cost, copies)
            assert rates[size - 1] == pytest.approx(max(rates))
            assert size == 1 or known[size - 2] > 0  # no node that brings nothing


def test_worth_never_rises_and_is_the_same_in_all() -> None:
    assert worths([]) == []
    assert worths([0.5, 0.3, 0.1]) == [0.5, 0.3, 0.1]
    assert worths([0.2, 0.4, 0.1, 0.3, 0.0]) == pytest.approx([0.3, 0.3, 0.2, 0.2, 0.0])
    draw = random.Random(2)
    for _ in range(100):
        known = [draw.random() for _ in range(9)]
        found = worths(known)
        assert found == sorted(found, reverse=True)
        assert sum(found) == pytest.approx(sum(known))


def test_a_better_sequence_gets_more_nodes() -> None:
    assert divide([[0.9, 0.8, 0.7], [0.5, 0.02, 0.01], [0.0] * 3], [0, 1, 2, 3], line(0.05)) == [4, 2, 1]


def test_one_sequence_does_not_pay_the_drafts_of_all() -> None:
    good, bad = [0.9, 0.8, 0.7], [0.0] * 3
    levels, cost = [0, 1, 2, 3], line(0.02, level=0.3)
    assert divide([good], levels, cost) == [4]
    assert divide([good] * 6, levels, cost) == [4] * 6
    assert divide([good] + [bad] * 9, levels, cost) == [1] * 10


def test_some_of_those_alike_get_a_node_where_only_few_are_free() -> None:
    known = [0.5, 0.25]
    sizes = divide([known] * 24, [0, 0, 0], StepCost(KNEE))
    assert sum(sizes) == 32
    assert set(sizes) == {1, 2}


@pytest.mark.parametrize("slots", [1, 3, 8, 24])
def test_rows_beside_make_trees_smaller(slots: int) -> None:
    """Where they have used up what was free; where every row costs the same they change nothing."""
    known = [0.6, 0.3, 0.15, 0.08, 0.04]
    sizes = [sum(divide([known] * slots, [0] * 6, StepCost(KNEE), beside=rows)) for rows in range(0, 40, 4)]
    assert max(sizes) == sizes[0] > sizes[-1]
    assert len({sum(divide([known] * slots, [0] * 6, line(0.03), beside=rows)) for rows in (0, 20, 200)}) == 1


@pytest.mark.parametrize("cost", [line(0.02), StepCost(CostCurve.make(0.02), 0.01), StepCost(KNEE)])
def test_more_sequences_make_trees_smaller(cost: StepCost) -> None:
    known = [0.6, 0.3, 0.15, 0.08, 0.04]
    sizes = [sum(divide([known] * slots, [0, 1, 1, 2, 2, 3], cost)) / slots for slots in (1, 4, 16, 64, 256)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 3
    assert sizes[-1] < 2 or cost.curve is not KNEE


def test_many_sequences_and_a_steep_curve_leave_nothing() -> None:
    steep = line(0.3)
    known = [0.45, 0.2, 0.1]
    assert divide([known], [0] * 4, steep)[0] == 2
    assert divide([known] * 32, [0] * 4, steep) == [1] * 32


def test_a_node_that_had_bad_luck_is_taken_in_again() -> None:
    past, cost, levels = Past(0.9), line(0.1), [0] * 4
    past.purse = 0.0
    for path in ([0, 1], [0], *[[0, 1]] * 20):
        past.observe(0, path, 4 if past.changes == 0 or path == [0] else 2)
    assert budget([0], past, levels, cost, 0.0)[0] > 2  # one after the other
    for _ in range(30):
        past.observe(0, [0, 1], 4)
    assert budget([0], past, levels, cost, 0.0) == [2]


def test_free_rows_are_all_taken() -> None:
    assert budget([0, RIGHT], past_of(3, [0], 5), [0] * 5, line(0.0), 0.0) == [5, 5]
    assert budget([0, 0], Past(0.9), [0] * 5, line(0.0), 0.0) == [5, 5]


def test_what_is_not_known_is_tried_here_and_there() -> None:
    """Not in all sequences at once, however many there are; and two full trees at least, whatever they cost."""
    past = Past(0.9)
    sizes = budget([0] * 32, past, [0] * 9, line(0.02), 0.02)
    assert 2 <= sizes.count(9) < 32
    assert sizes.count(1) == 32 - sizes.count(9)
    dear, tries = Past(0.9), []
    for _ in range(20):
        sizes = budget([0] * 4, dear, [0] * 9, line(50.0), 0.0)
        tries.append(sizes.count(9))
        for size in sizes:
            dear.observe(0, [0], size)
    assert tries == [1, 1] + [0] * 18


@pytest.mark.parametrize("allowance", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("members", [1, 4, 32])
@pytest.mark.parametrize("copies", [1, 3])
def test_tries_cost_no_more_than_the_allowance(members: int, copies: int, allowance: float) -> None:
    past, cost, levels = past_of(ENOUGH, [0], 5), line(0.03, level=0.2), [0, 1, 2, 2, 3]
    rows = members * copies
    plain = cost(rows, 0, rows)
    spent, tries = 0.0, [0] * members
    for step in range(1, 1000):
        sizes = budget([0] * members, past, levels, cost, allowance, copies)
        assert set(sizes) <= {1, 5}
        for member, size in enumerate(sizes):
            tries[member] += size == 5
        spent += cost(copies * sum(sizes), levels[max(sizes) - 1], rows) - plain
        assert spent <= allowance * plain * step + 1e-9
    assert spent == (pytest.approx(allowance * plain * 1000, rel=0.1) if allowance else 0)
    assert max(tries) <= min(tries) + 1  # everyone's turn comes


def test_the_beginning_has_a_credit_and_an_end() -> None:
    """It is not kept: who has seen enough trees tries out of the allowance alone."""
    cost, levels, past = line(0.01), [0] * 9, Past(0.99)
    spent = 0.0
    for _ in range(400):
        sizes = budget([0], past, levels, cost, 0.0)
        past.observe(0, [0], sizes[0])
        spent += cost(sizes[0], 0, 1) - 1
    assert ENOUGH <= past.changes <= ENOUGH + 1
    assert spent == pytest.approx(past.changes * 0.08)
    dear, spent = Past(0.99), 0.0
    for _ in range(400):
        sizes = budget([0], dear, levels, line(0.2), 0.0)
        dear.observe(0, [0], sizes[0])
        spent += line(0.2)(sizes[0], 0, 1) - 1
    assert CREDIT - 1.6 < spent <= CREDIT + 1e-9
