"""What became of trees, and so what may become of the next one: how often each node is on the accepted path.

Running means by a node's number, the root's being 0 (for a chain, acceptance by depth), and by how many tokens of the
draft before were right in the same text: what could be predicted a step ago goes on being predictable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

TRIALS = 2.0  # full trees before anything is judged
OTHERS = 8.0  # most steps that what followed on any draft counts for beside what followed on one as good
RIGHT = 3  # tokens of a draft that were right, from which on more make no difference


@dataclass(slots=True)
class Account:
    """Running means.

    Attributes:
        decay: weight of the past in them.
        hits, seen: by node from 1 on, steps that accepted it, and that verified it, weighted.
    """

    decay: float
    hits: list[float] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)

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


class Past:
    """Of those who decide together.

    Args:
        decay: weight of the past in running means.

    Attributes:
        purse: saved for the next try, see `budget`; None before the first step.
        turn: whose turn it is to be tried.
        changes: how often something was observed.
    """

    def __init__(self, decay: float):
        self._decay = decay
        self.forget()

    def forget(self) -> None:
        """Nothing was observed, nothing saved."""
        self.purse: float | None = None
        self.turn = self.changes = 0
        self._any = Account(self._decay)
        self._after = [Account(self._decay) for _ in range(RIGHT + 1)]
        self._chances: dict[int, list[float]] = {}

    def observe(self, right: int, path: Sequence[int], size: int) -> None:
        """A tree of `size` nodes was verified, and `path` accepted, where `right` tokens of the draft before were."""
        if size == 1:
            return
        self._any.observe(path, size)
        self._after[min(right, RIGHT)].observe(path, size)
        self._chances.clear()
        self.changes += 1

    @property
    def known(self) -> bool:
        """Whether enough trees were seen to judge the next ones; running counts fade."""
        return self._any.known(1) >= TRIALS * self._any.decay

    def chances(self, right: int) -> list[float]:
        """Of nodes 1, 2, ... to be on the accepted path where `right` tokens of the draft before were.

        What followed on any draft counts beside what followed on one as good, more or less of it as these have been
        followed by better ones or worse.
        """
        right = min(right, RIGHT)
        if right not in self._chances:
            own, means = self._after[right], self._any.means()
            had = sum(seen * mean for seen, mean in zip(own.seen, means, strict=False))
            easy = (sum(own.hits) + 1) / (had + 1)
            steps = (min(OTHERS, seen) for seen in self._any.seen)
            expected = [(min(easy * mean, 1.0), count) for mean, count in zip(means, steps, strict=True)]
            self._chances[right] = own.means(expected)
        return self._chances[right]
