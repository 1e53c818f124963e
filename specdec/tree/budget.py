"""How many of a tree's nodes are worth verifying, judged by what became of the trees before.

The first n nodes of a tree bring 1 + the sum of their chances to be on the accepted path, and cost what the machine's
curve says. The chances are running means by a node's number, the root's being 0: for a chain, acceptance by depth.
What has not been verified lately is tried again in full trees now and then, out of an allowance: a share of what plain
decoding would have cost meanwhile. So tries are rarer the dearer they are, and never cost more than that share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec.tree.cost import CostCurve

TRIALS = 2.0  # full trees at the beginning, before anything is judged
OTHERS = 4.0  # most steps that what all slots have seen counts for beside what a slot has seen


@dataclass(frozen=True, slots=True)
class StepCost:
    """In steps of plain decoding of one sequence.

    Attributes:
        curve: of verifying, by rows.
        level: of drafting one level.
    """

    curve: CostCurve
    level: float = 0.0

    def __call__(self, rows: int, levels: int) -> float:
        """Of a step that drafts `levels` and verifies `rows`."""
        return self.curve(rows) + self.level * levels


@dataclass(slots=True)
class Account:
    """What has been seen, and what may be spent on tries.

    Attributes:
        decay: weight of the past in the running means.
        hits, seen: by node from 1 on, steps that accepted it, and that verified it, weighted.
        purse: saved for the next try.
    """

    decay: float
    hits: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    purse: float = 0.0

    def observe(self, path: Sequence[int], size: int) -> None:
        """A tree of `size` nodes was verified; `path` was accepted."""
        missing = size - 1 - len(self.seen)
        if missing > 0:
            self.hits += [0.0] * missing
            self.seen += [0.0] * missing
        for i in range(size - 1):
            self.hits[i] *= self.decay
            self.seen[i] = self.seen[i] * self.decay + 1
        for node in path:
            if node:
                self.hits[node - 1] += 1

    def known(self, node: int) -> float:
        """How often node `node` was verified, weighted."""
        return self.seen[node - 1] if node <= len(self.seen) else 0.0

    def means(self, expected: Sequence[tuple[float, float]] = ()) -> list[float]:
        """Of nodes 1, 2, ...

        The mean of the node before counts for one step: a node that had bad luck before it was left out is taken in
        again where those before it do well. So do `expected` means for the steps beside them.
        """
        found: list[float] = []
        for i in range(max(len(self.seen), len(expected))):
            hits, seen = (self.hits[i], self.seen[i]) if i < len(self.seen) else (0.0, 0.0)
            mean, steps = expected[i] if i < len(expected) else (0.0, 0.0)
            hits, seen = hits + mean * steps, seen + steps
            if found:
                hits, seen = hits + found[-1], seen + 1
            found.append(hits / seen if seen else 0.0)
        return found


def chances(own: Account, others: Account | None) -> list[float] | None:
    """Of nodes 1, 2, ... to be on the accepted path; None while too little is known.

    Args:
        own: of the slot.
        others: of all slots. It counts beside what a slot has seen, more or less of it as the slot's text has been
            easier or harder.
    """
    if others is None:
        return None if own.known(1) < TRIALS * own.decay else own.means()  # running counts fade
    if others.known(1) < TRIALS * others.decay:  # which has seen what `own` has
        return None
    means = others.means()
    had = sum(seen * mean for seen, mean in zip(own.seen, means, strict=False))
    easy = (sum(own.hits) + 1) / (had + 1)
    steps = (min(OTHERS, seen) for seen in others.seen)
    return own.means([(min(easy * mean, 1.0), count) for mean, count in zip(means, steps, strict=True)])


def best_size(known: Sequence[float], levels: Sequence[int], slots: int, cost: StepCost) -> int:
    """Nodes, the root included, that write the most tokens for what they cost if all slots have as many.

    Args:
        known: chances of nodes 1, 2, ...
        levels: that have to be drafted for 1, 2, ... nodes.
        slots: sequences in a step.
        cost: of a step.
    """
    best, tokens, rate = 1, 1.0, 1.0 / cost(slots, levels[0])
    for size, chance in enumerate(known, 2):
        tokens += chance
        if chance and (now := tokens / cost(slots * size, levels[size - 1])) > rate:
            best, rate = size, now
    return best


def budget(
    members: Sequence[Sequence[float] | None],
    levels: Sequence[int],
    copies: int,
    cost: StepCost,
    payer: Account,
    allowance: float,
) -> list[int]:
    """Tree sizes of slots that decide together.

    Args:
        members: chances of nodes 1, 2, ... in every slot; None for not known yet, which wants a full tree.
        levels: that have to be drafted for 1, 2, ... nodes, as many as a tree can have.
        copies: how many times as many slots there are as decide: what each of them would cost if all did the same.
        cost: of a step.
        payer: whose purse tries are paid from.
        allowance: share of plain decoding's cost that goes into it at every step.
    """
    most, slots = len(levels), copies * len(members)
    sizes = [most if known is None else best_size(known, levels, slots, cost) for known in members]
    full = [most] * len(members)

    def price(chosen: Sequence[int]) -> float:
        return cost(copies * sum(chosen), levels[max(chosen) - 1])

    plain = cost(slots, levels[0])
    tokens = sum(1 + sum(known[: size - 1]) for known, size in zip(members, sizes, strict=True) if known is not None)
    if None not in members and copies * tokens * plain < slots * price(sizes):  # a few would pay, but not for all
        sizes = [1] * len(members)
    extra = max(price(full) - price(sizes), 0.0)
    payer.purse = min(payer.purse + allowance * plain, extra)
    if payer.purse >= extra:
        payer.purse -= extra
        return full
    return sizes
