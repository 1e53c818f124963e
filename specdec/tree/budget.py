"""How many nodes of every tree are worth verifying.

The first n nodes of a tree bring 1 + the sum of their chances to be on the accepted path, and cost what the machine's
curve says. Sequences that decide together share one budget: the nodes of all of them are taken in the order of their
chances, as long as that raises the tokens of a step for what it costs.
What has not been verified lately is tried again in full trees, now here, now there, out of an allowance: a share of
what plain decoding would have cost meanwhile, and some steps' worth at the beginning. So tries are rarer the dearer
they are, and never cost more than that.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specdec.tree.cost import CostCurve
from specdec.tree.past import Past

CREDIT = 4.0  # steps of plain decoding that tries at the beginning may cost
ENOUGH = 16  # trees, after which it is not the beginning any more, and most that are tried at a step


@dataclass(frozen=True, slots=True)
class StepCost:
    """In steps of plain decoding of one sequence.

    Attributes:
        curve: of verifying, by rows.
        level: of drafting one level, in steps of plain decoding of as many sequences.
        sequences: of plain decoding, by sequences; None where it is not known, as if they cost no more than as many
            rows of one.
    """

    curve: CostCurve
    level: float = 0.0
    sequences: CostCurve | None = None

    def plain(self, sequences: int) -> float:
        """Of a step without drafts."""
        return (self.sequences or self.curve)(sequences)

    def __call__(self, nodes: int, levels: int, sequences: int, beside: int = 0) -> float:
        """Of a step that drafts `levels` and verifies `nodes`, the roots of `sequences` among them.

        Rows `beside` them make further ones dearer, or not, as the curve says; their own cost is not counted, since it
        is the same however many nodes there are.
        """
        rows = self.curve(beside + nodes) - self.curve(beside + sequences)
        return self.plain(sequences) * (1 + self.level * levels) + rows


def divide(
    members: Sequence[Sequence[float]],
    levels: Sequence[int],
    cost: StepCost,
    copies: int = 1,
    beside: int = 0,
) -> list[int]:
    """Sizes of trees, the roots included, that together bring the most tokens for what the step costs.

    Args:
        members: for every sequence, chances of nodes 1, 2, ... Sequences with the same list are looked at as one.
        levels: that have to be drafted for 1, 2, ... nodes, never falling.
        cost: of a step.
        copies: how many times as many sequences there are as members: what each of them does, all its copies do.
        beside: rows of the step that are not theirs.
    """
    kinds: dict[int, list[int]] = {}  # of members with the same chances
    for member, known in enumerate(members):
        kinds.setdefault(id(known), []).append(member)
    alike = list(kinds.values())
    order = sorted(
        (-worth, kind, node)
        for kind, (first, *_) in enumerate(alike)
        for node, worth in enumerate(worths(members[first]), 1)
        if worth
    )
    sequences = copies * len(members)
    sizes, rate = [1] * len(members), len(members) / cost(sequences, levels[0], sequences, beside)
    for most in sorted(set(levels)) if cost.level else levels[-1:]:
        tokens, nodes = float(len(members)), len(members)
        taken = [0] * len(alike)  # nodes that all of a kind have
        for _, kind, node in order:
            if levels[node] > most:
                continue
            who = alike[kind]
            chance = members[who[0]][node - 1]
            for count in _stops(cost.curve, beside + copies * nodes, copies, len(who)):
                now = (tokens + chance * count) / cost(copies * (nodes + count), most, sequences, beside)
                if now > rate:
                    rate = now
                    sizes = _sizes(alike, taken, len(members))
                    for member in who[:count]:
                        sizes[member] = node + 1
            taken[kind] = node
            tokens, nodes = tokens + chance * len(who), nodes + len(who)
    return sizes


def worths(known: Sequence[float]) -> list[float]:
    """Of nodes 1, 2, ..., never rising: one with a better chance than those before it comes with them, or not at all,
    and their mean is what each of them is worth."""
    blocks: list[tuple[float, int]] = []  # sums of chances, and how many
    for chance in known:
        total, count = chance, 1
        while blocks and blocks[-1][0] * count < total * blocks[-1][1]:
            before = blocks.pop()
            total, count = total + before[0], count + before[1]
        blocks.append((total, count))
    return [total / count for total, count in blocks for _ in range(count)]


def _stops(curve: CostCurve, rows: int, each: int, most: int) -> Iterator[int]:
    """How many of `most` nodes, `each` of so many rows, to look at behind `rows`: between two points of the curve
    tokens and costs go straight on, so that the best is at one of them."""
    for knot in curve.rows[bisect_right(curve.rows, rows) : bisect_left(curve.rows, rows + each * most)]:
        if count := int(knot - rows) // each:
            yield count
    yield most


def _sizes(alike: Sequence[Sequence[int]], taken: Sequence[int], members: int) -> list[int]:
    sizes = [1] * members
    for who, nodes in zip(alike, taken, strict=True):
        for member in who:
            sizes[member] = nodes + 1
    return sizes


def budget(
    rights: Sequence[int],
    past: Past,
    levels: Sequence[int],
    cost: StepCost,
    allowance: float,
    copies: int = 1,
    beside: int = 0,
) -> list[int]:
    """Sizes of trees of those who decide together: as `divide` says, and full where they are tried.

    Args:
        rights: tokens of every sequence's last draft that were right.
        past: theirs; it pays for tries. While it is not known, one sequence at least is tried.
        levels: that have to be drafted for 1, 2, ... nodes, as many as a tree can have.
        cost, copies, beside: see `divide`.
        allowance: share of plain decoding's cost that may go into tries.
    """
    most, sequences = len(levels), copies * len(rights)
    sizes = [1] * len(rights)
    if past.known:
        sizes = divide([past.chances(right) for right in rights], levels, cost, copies, beside)

    def price(chosen: Sequence[int]) -> float:
        return cost(copies * sum(chosen), levels[max(chosen) - 1], sequences, beside)

    plain = cost(sequences, levels[0], sequences, beside)
    purse = CREDIT * plain if past.purse is None else past.purse
    saved, dearest, paid, now = purse + allowance * plain, 0.0, 0, price(sizes)
    first = past.turn
    for place in range(len(rights)):
        member = (first + place) % len(rights)
        if sizes[member] == most:
            continue
        tried = [*sizes]
        tried[member] = most
        extra = max((then := price(tried)) - now, 0.0)
        dearest = max(dearest, extra)
        if paid == ENOUGH or (extra > saved and (past.known or place)):
            break
        saved, purse = max(saved - extra, 0.0), max(purse - extra, 0.0)
        sizes, now, paid = tried, then, paid + (extra > 0)
        past.turn = member + 1
    beginning = past.changes + paid < ENOUGH
    past.purse = max(purse * beginning, min(saved, dearest))  # nothing else is saved beyond the next try
    return sizes
