"""What is counted and timed of one request while it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestStats:
    """Counts and times of one request.

    Attributes:
        prompt_tokens: tokens of the prompt.
        accept_lengths: emitted tokens of every step, in order, the bonus included and nothing past the end.
        nodes: proposed draft nodes (roots not counted).
        riders: rows that were run beside the trees and could not be accepted.
        proposed_depth: sum over steps of the tree's height: draft tokens proposed along the depth.
        accepted: accepted draft tokens (bonus not counted, cut or not).
        offered_by_depth: steps in which the walk stood at a node of depth d - 1 that had children, for d = 1, 2, ...
        accepted_by_depth: steps in which a node of depth d was accepted, for d = 1, 2, ...
        children: of every step, how many children the nodes of the accepted path had, the root first.
        ranks: of every step, the accepted nodes' places among their siblings, from depth 1 on; 0 is the first.
        start, first, end: seconds on one clock: entering, first token, last token. In `generate_many` a request enters
            when it is taken from the iterable, and waits from then on.
        first_tokens: tokens of the prefill: one, but where another engine verifies a draft in that very pass, and none
            in `generate_many`, where a prompt's last token is the root of a first tree.
        queued: seconds from entering to being admitted to a slot.
        preemptions: how often it lost its pages, and was read again.
        shared_tokens: tokens of the prompt that it never read, since other requests' pages had them. What it has had
            before it lost its pages, and finds again, does not count.

    A count that another engine does not tell is NaN.
    """

    prompt_tokens: int = 0
    accept_lengths: list[int] = field(default_factory=list, repr=False)
    nodes: int = 0
    riders: int = 0
    proposed_depth: int = 0
    accepted: int = 0
    offered_by_depth: list[int] = field(default_factory=list, repr=False)
    accepted_by_depth: list[int] = field(default_factory=list, repr=False)
    children: list[list[int]] = field(default_factory=list, repr=False)
    ranks: list[list[int]] = field(default_factory=list, repr=False)
    start: float = 0.0
    first: float = 0.0
    end: float = 0.0
    first_tokens: int = 1
    queued: float = 0.0
    preemptions: int = 0
    shared_tokens: int = 0

    @property
    def steps(self) -> int:
        """Verify passes that served this request."""
        return len(self.accept_lengths)

    @property
    def new_tokens(self) -> int:
        """Tokens emitted, the prefill's first one included."""
        return sum(self.accept_lengths) + self.first_tokens * (self.first > 0)

    @property
    def ttft(self) -> float:
        """Seconds from entering to the first token."""
        return self.first - self.start

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first."""
        return (self.end - self.first) / max(self.new_tokens - 1, 1)

    @property
    def mean_accepted_length(self) -> float:
        """This request's emitted tokens per step; NaN without a step."""
        return ratio(sum(self.accept_lengths), self.steps)

    def record(self, kept: int, size: int, height: int, children: list[int], ranks: list[int], riders: int = 0) -> None:
        """One step: its tokens before the end; the tree's size and height; how many children the nodes of the accepted
        path had, and which of them were accepted; the rows beside the tree."""
        emitted, offered = len(children), bool(children[-1])
        self.accept_lengths.append(kept)
        self.children.append(children)
        self.ranks.append(ranks)
        self.nodes += size - 1
        self.riders += riders
        self.proposed_depth += height
        self.accepted += emitted - 1
        reached = emitted if offered else emitted - 1
        for counts, depth in ((self.offered_by_depth, reached), (self.accepted_by_depth, emitted - 1)):
            counts.extend([0] * (depth - len(counts)))
            for d in range(depth):
                counts[d] += 1


def ratio(numerator: float, denominator: float) -> float:
    """NaN where there is nothing to divide by."""
    return numerator / denominator if denominator else float("nan")
