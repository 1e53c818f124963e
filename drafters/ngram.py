"""Prompt lookup: what followed the last few tokens earlier in this text may follow again.

The longest suffix that occurred before wins; its latest continuations, and then those of shorter suffixes, are merged
into a tree. An index of n-grams is kept up to date token by token, so a step costs the same however long the text.
Saxena, Prompt Lookup Decoding (github.com/apoorvumang/prompt-lookup-decoding), 2023; Yang et al., arXiv 2304.04487.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.core import DraftNeeds, TargetOutput, Verdict
from specdec.sampling import DraftNoise
from specdec.tree.token_tree import TokenTree, merge_paths


class Text:
    """One request's tokens, and for every n-gram where the latest few continuations begin."""

    def __init__(self, max_ngram: int, keep: int):
        self._max_ngram, self._keep = max_ngram, keep
        self._tokens: list[int] = []
        self._index: dict[tuple[int, ...], deque[int]] = {}

    def append(self, token: int) -> None:
        """Index the n-grams that `token` follows, then add it."""
        end = len(self._tokens)
        for n in range(1, min(self._max_ngram, end) + 1):
            self._index.setdefault(tuple(self._tokens[end - n :]), deque(maxlen=self._keep)).append(end)
        self._tokens.append(token)

    def continuations(self, min_ngram: int, length: int) -> list[list[int]]:
        """What followed earlier, longest suffix first, latest first, at most `keep`."""
        found: list[int] = []
        for n in range(min(self._max_ngram, len(self._tokens)), min_ngram - 1, -1):
            starts = self._index.get(tuple(self._tokens[-n:]), ())
            found += [start for start in reversed(starts) if start not in found]
            if len(found) >= self._keep:
                break
        return [self._tokens[start : start + length] for start in found[: self._keep]]


@dataclass(slots=True)
class State:
    """Texts by slot, and where trees go."""

    device: torch.device
    texts: dict[int, Text] = field(default_factory=dict)


class NGram:
    """See the module.

    Args:
        max_ngram: longest suffix looked up.
        min_ngram: shortest.
        length: draft tokens per continuation.
        continuations: how many are merged; 1 gives chains.
        max_nodes: most nodes of a tree, the root included.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, max_ngram: int = 3, min_ngram: int = 1, length: int = 8, continuations: int = 2, max_nodes: int = 16
    ):
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"ngram needs 1 <= min_ngram <= max_ngram; got {min_ngram} and {max_ngram}")
        if length < 1 or continuations < 1 or max_nodes < 2:
            raise ValueError(
                "ngram needs length >= 1, continuations >= 1 and max_nodes >= 2; "
                f"got {length}, {continuations} and {max_nodes}"
            )
        self.max_ngram, self.min_ngram, self.length, self.continuations = max_ngram, min_ngram, length, continuations
        self.needs = DraftNeeds(max_nodes=max_nodes)

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """No text yet."""
        return State(device)

    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Index the prompts."""
        for slot, prompt in zip(slots, prompts, strict=True):
            text = state.texts[slot] = Text(self.max_ngram, self.continuations)
            for token in prompt:
                text.append(token)

    def propose(self, state: State, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """The root is new to the text: index it, then look up."""
        trees = []
        for slot, root in enumerate(roots.tolist()):
            paths: list[list[int]] = []
            if root >= 0:
                state.texts[slot].append(root)
                paths = state.texts[slot].continuations(self.min_ngram, self.length)
            trees.append(merge_paths(root, paths, self.needs.max_nodes))
        return TokenTree.from_lists(trees, state.device)

    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Index the accepted tokens; the next root comes with the next proposal."""
        emitted, counts = verdict.emitted(tree).tolist(), verdict.num_accepted.tolist()
        for slot, count in enumerate(counts):
            for token in emitted[slot][: max(count - 1, 0)]:
                state.texts[slot].append(token)
