"""Prompt lookup: what followed the last few tokens earlier in this text may follow again.

The longest suffix that occurred before wins; its latest continuations, and then those of shorter suffixes, are merged
into a tree. On the host an index of n-grams is kept up to date token by token, so a step costs the same however long
the text. On a GPU the text lies in its memory and is searched whole, so that a step waits for nobody. Both propose the
same.
Saxena, Prompt Lookup Decoding (github.com/apoorvumang/prompt-lookup-decoding), 2023; Yang et al., arXiv 2304.04487.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from specdec.core import DraftNeeds, TargetOutput, Verdict
from specdec.kernels.ngram_match import ngram_match
from specdec.sampling import DraftNoise
from specdec.tree.merge import merge_continuations
from specdec.tree.token_tree import TokenTree


class Text:
    """One request's tokens, and for every n-gram where the latest few continuations begin."""

    def __init__(self, max_ngram: int, keep: int):
        self._max_ngram, self._keep = max_ngram, keep
        self._tokens: list[int] = []
        self._index: dict[tuple[int, ...], tuple[int, ...]] = {}  # latest last, at most `keep`

    def append(self, token: int) -> None:
        """Index the n-grams that `token` follows, then add it."""
        end = len(self._tokens)
        for n in range(1, min(self._max_ngram, end) + 1):
            key = tuple(self._tokens[end - n :])
            self._index[key] = (*self._index.get(key, ()), end)[-self._keep :]
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


class HostTexts:
    """The indexed texts by slot, and where trees go."""

    def __init__(self, settings: NGram, device: torch.device):
        self._settings, self._device = settings, device
        self.texts: dict[int, Text] = {}

    def enter(self, slots: list[int], prompts: list[list[int]]) -> None:
        """Index new texts."""
        for slot, prompt in zip(slots, prompts, strict=True):
            text = self.texts[slot] = Text(self._settings.max_ngram, self._settings.continuations)
            for token in prompt:
                text.append(token)

    def append(self, tokens: Tensor, counts: Tensor) -> None:
        """Index the first `counts` `[B]` of `tokens` `[B, D]`."""
        for slot, (row, count) in enumerate(zip(tokens.tolist(), counts.tolist(), strict=True)):
            for token in row[: max(count, 0)]:
                self.texts[slot].append(token)

    def trees(self, roots: Tensor) -> TokenTree:
        """What may follow `roots` `[B]`, the last tokens of the texts; -1 for an empty slot."""
        lookup = self._settings
        last = roots.tolist()
        paths = [
            self.texts[slot].continuations(lookup.min_ngram, lookup.length) if root >= 0 else []
            for slot, root in enumerate(last)
        ]
        return TokenTree.from_paths(last, paths, lookup.needs.max_nodes, self._device)


class DeviceTexts:
    """As HostTexts, in fixed buffers on the device: `append` and `trees` read nothing to the host.

    Attributes:
        tokens: `[capacity, max_length + 1]` int64; the last column takes what belongs nowhere.
        lengths: `[capacity]` int32. The text of a request that has ended may go on: it stops at `max_length`.
    """

    def __init__(self, settings: NGram, capacity: int, max_length: int, device: torch.device):
        self._settings, self._max_length = settings, max_length
        self.tokens = torch.zeros(capacity, max_length + 1, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(capacity, dtype=torch.int32, device=device)

    def enter(self, slots: list[int], prompts: list[list[int]]) -> None:
        """Copy new texts."""
        for slot, prompt in zip(slots, prompts, strict=True):
            self.tokens[slot, : len(prompt)] = torch.tensor(prompt, device=self.tokens.device)
            self.lengths[slot] = len(prompt)

    def append(self, tokens: Tensor, counts: Tensor) -> None:
        """Add the first `counts` `[B]` of `tokens` `[B, D]`."""
        step = torch.arange(tokens.shape[1], device=tokens.device)
        place = torch.where(step < counts[:, None], self.lengths[:, None] + step, self._max_length)  # [B, D]
        self.tokens.scatter_(1, place.clamp_max(self._max_length), tokens)
        self.lengths.add_(counts.clamp_min(0)).clamp_max_(self._max_length)

    def trees(self, roots: Tensor) -> TokenTree:
        """See HostTexts; trees are padded to one shape."""
        lookup = self._settings
        texts = self.tokens[:, : self._max_length]
        starts, _ = ngram_match(texts, self.lengths, lookup.min_ngram, lookup.max_ngram, lookup.continuations)  # [B, K]
        place = starts[..., None] + torch.arange(lookup.length, device=roots.device)  # [B, K, length]
        tokens = texts.gather(1, place.clamp(0, self._max_length - 1).flatten(1)).view_as(place)
        lengths = torch.where(starts >= 0, self.lengths[:, None] - starts, 0)  # [B, K], cut at `length` by the shape
        return merge_continuations(roots, tokens, lengths, lookup.needs.max_nodes)


Texts = HostTexts | DeviceTexts


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

    takes_levels: ClassVar[bool] = True

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
        self.needs = DraftNeeds(max_nodes=max_nodes, on_device=True)

    def open(self, capacity: int, max_length: int, device: torch.device) -> Texts:
        """No text yet."""
        return DeviceTexts(self, capacity, max_length, device) if device.type != "cpu" else HostTexts(self, device)

    def start(self, state: Texts, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """The prompts are the first texts."""
        state.enter(slots, prompts)

    def propose(self, state: Texts, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        """The root is new to the text: add it, then look up, unless no `levels` are wanted."""
        state.append(roots[:, None], (roots >= 0).int())
        return TokenTree.roots(roots) if levels == 0 else state.trees(roots)

    def observe(self, state: Texts, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Add the accepted tokens; the next root comes with the next proposal."""
        state.append(verdict.emitted(tree), verdict.num_accepted - 1)
