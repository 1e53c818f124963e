"""What followed the longest suffix of this text that occurred before, here or in texts written earlier, and how often.

A suffix automaton of prompt and text finds that suffix without searching; another holds what was written for all
requests. Continuations become a tree, the most frequent nodes first, and the longer the match the larger the tree.
Oliaro et al., SuffixDecoding, arXiv 2411.04975 (frequencies, size by match length); Hu et al., SAM-Decoding, arXiv
2411.10666 (automata instead of trees).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from specdec.drafters.text_drafter import TextDrafter
from specdec.tree.likeliest import likeliest

COUNTED = 32  # suffixes of a text whose occurrences are counted with every token, the longest first
CONTEXTS = 4  # suffixes that are looked up, the longest first
BRANCHES = 8  # continuations of one suffix
SEED = 32  # tokens before a text's first that its history begins with, and longest match in the older half of it


class Automaton:
    """The suffix automaton of one text or several (Blumer et al., 1985), with occurrences; O(1) a token, amortised.

    A state stands for the substrings that end at the same places; state 0 for the empty one. A state's link is the
    longest suffix of these that ends at more places. Occurrences are those of all substrings but very short suffixes
    of very repetitive texts (see COUNTED).

    Attributes:
        following: by state, token -> state.
        links, lengths: by state; length of the longest substring.
        counts, latest: by state, how often it occurred and at which token last, counted over all texts.
        size: tokens read.
    """

    def __init__(self) -> None:
        self.following: list[dict[int, int]] = [{}]
        self.links, self.lengths, self.counts, self.latest = [-1], [0], [0], [0]
        self.size = 0

    def extend(self, state: int, token: int) -> int:
        """`state` is a text that has been read, 0 a new one; returns the text one token longer."""
        following, links = self.following, self.links
        known = following[state].get(token)
        if known is not None:
            new = self._split(state, token, known)
        else:
            new = self._add(self.lengths[state] + 1, {}, 0, 0, 0)
            at = state
            while at >= 0 and token not in following[at]:
                following[at][token] = new
                at = links[at]
            if at >= 0:
                links[new] = self._split(at, token, following[at][token])
        self.size += 1
        at = new
        for _ in range(COUNTED):
            if at <= 0:
                break
            self.counts[at] += 1
            self.latest[at] = self.size
            at = links[at]
        return new

    def _add(self, length: int, following: dict[int, int], link: int, count: int, latest: int) -> int:
        self.following.append(following)
        self.links.append(link)
        self.lengths.append(length)
        self.counts.append(count)
        self.latest.append(latest)
        return len(self.links) - 1

    def _split(self, state: int, token: int, target: int) -> int:
        """The state of exactly the substrings of `state` with `token`, of which `target` may hold longer ones, too."""
        length = self.lengths[state] + 1
        if self.lengths[target] == length:
            return target
        short = self._add(
            length, dict(self.following[target]), self.links[target], self.counts[target], self.latest[target]
        )
        self.links[target] = short
        while state >= 0 and self.following[state].get(token) == target:
            self.following[state][token] = short
            state = self.links[state]
        return short

    def find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """State and length of the longest suffix of `tokens` that occurs."""
        state, length = 0, 0
        for token in tokens:
            while state and token not in self.following[state]:
                state = self.links[state]
                length = self.lengths[state]
            if token in self.following[state]:
                state, length = self.following[state][token], length + 1
        return state, length


@dataclass(frozen=True, slots=True)
class Match:
    """A suffix of a text that occurred before: in which automaton, at which state, and how long it is."""

    automaton: Automaton
    state: int
    length: int

    def contexts(self) -> Iterator[Match]:
        """Itself and shorter suffixes that occurred more often."""
        state, length = self.state, self.length
        for _ in range(CONTEXTS):
            if not length:
                return
            yield Match(self.automaton, state, length)
            state = self.automaton.links[state]
            length = self.automaton.lengths[state]

    def children(self) -> list[tuple[float, int, Match]]:
        """What followed, the most frequent first, the latest of equals first. A longer match is trusted more."""
        a = self.automaton
        following = a.following[self.state]
        times = a.counts[self.state] - (a.latest[self.state] == a.size) + 1 / self.length
        ranked = heapq.nlargest(BRANCHES, following.items(), key=lambda item: (a.counts[item[1]], a.latest[item[1]]))
        return [(min(a.counts[s] / times, 1.0), t, Match(a, s, self.length + 1)) for t, s in ranked]


class History:
    """What was written for all requests, at most `capacity` tokens of it: two halves, of which the older is forgotten
    when the younger is full."""

    def __init__(self, capacity: int):
        self._half = max(capacity // 2, 1)
        self.forget()

    def forget(self) -> None:
        """Nothing was written."""
        self.young, self.old = Automaton(), Automaton()

    def make_room(self) -> None:
        """Called before a token is added."""
        if self.young.size >= self._half:
            self.young, self.old = Automaton(), self.young


@dataclass(slots=True)
class Text:
    """A request's text.

    Attributes:
        last: its newest tokens, the root last.
        own: of prompt and text, which is its state `at`.
        shared: the younger half of the history, of which the text is state `there`; None for not in it.
    """

    last: list[int]
    own: Automaton = field(default_factory=Automaton)
    at: int = 0
    shared: Automaton | None = None
    there: int = 0


class Suffix(TextDrafter[Text]):
    """See the module. What was written stays with the drafter, for later requests and other decoders.

    Args:
        max_nodes: most nodes of a tree, the root included.
        nodes_per_match: draft nodes for every token that matches.
        min_probability: of a node's path, by frequency.
        remember: tokens of past texts that are kept, some 0.5 kB each; 0 to use a request's own text alone.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, max_nodes: int = 16, nodes_per_match: float = 8.0, min_probability: float = 0.02, remember: int = 65_536
    ):
        if max_nodes < 2 or nodes_per_match <= 0 or not 0 <= min_probability <= 1 or remember < 0:
            raise ValueError(
                "suffix needs max_nodes >= 2, nodes_per_match > 0, min_probability from 0 to 1 and remember >= 0; "
                f"got {max_nodes}, {nodes_per_match}, {min_probability} and {remember}"
            )
        super().__init__(max_nodes)
        self.nodes_per_match, self.min_probability = nodes_per_match, min_probability
        self.history = History(remember) if remember else None

    def forget(self) -> None:
        """See Drafter."""
        if self.history is not None:
            self.history.forget()

    def read(self, prompts: list[list[int]], max_length: int) -> list[Text]:
        """Prompts are read into automata of their own; they are no one else's."""
        texts = [Text(prompt[-SEED:]) for prompt in prompts]
        for text, prompt in zip(texts, prompts, strict=True):
            for token in prompt:
                text.at = text.own.extend(text.at, token)
        return texts

    def append(self, text: Text, tokens: Sequence[int]) -> None:
        """New tokens are everyone's."""
        for token in tokens:
            text.at = text.own.extend(text.at, token)
            if self.history is not None:
                self.history.make_room()
                if text.shared is not self.history.young:
                    text.shared, text.there = self.history.young, 0
                    for earlier in text.last:
                        text.there = text.shared.extend(text.there, earlier)
                text.there = text.shared.extend(text.there, token)
            text.last = [*text.last[1 - SEED :], token]

    def matches(self, text: Text) -> list[Match]:
        """The longest in the text itself, and in both halves of the history."""
        found = [_before(text.own, text.at)]
        if self.history is not None and text.shared is not None:
            found += [_before(text.shared, text.there), Match(self.history.old, *self.history.old.find(text.last))]
        return found

    def draft(self, text: Text, vocab_size: int) -> tuple[list[int], list[int]]:
        """The likeliest continuations."""
        matches = self.matches(text)
        longest = max(match.length for match in matches)
        room = min(self.needs.max_nodes, 1 + int(self.nodes_per_match * longest))
        sources = [(weight(context.length), context) for match in matches for context in match.contexts()]
        return likeliest(text.last[-1], sources, Match.children, room, self.min_probability)


def weight(length: int) -> float:
    """How far a match of `length` tokens is trusted beside others."""
    return length / (length + 1)


def _before(automaton: Automaton, state: int) -> Match:
    """The longest suffix of the text `state` that occurs elsewhere."""
    link = automaton.links[state]
    return Match(automaton, link, automaton.lengths[link]) if state else Match(automaton, 0, 0)
