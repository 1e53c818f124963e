"""What drafters have in common that look at tokens alone: one text per slot, kept on the host.

The device is read once a step, in `observe`; once more when requests enter, whose first token nobody has told yet.
A request that ends is noticed one step later: until then `propose` empties its tree without asking the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from specdec.core import DraftNeeds, TargetOutput, Verdict
from specdec.sampling import DraftNoise
from specdec.tree.token_tree import TokenTree

Text = TypeVar("Text")


@dataclass(slots=True)
class State(Generic[Text]):
    """Texts by slot.

    Attributes:
        capacity, max_length: as `open` was told.
        device: where trees go.
        texts: up to the root, but for slots in `entered`, whose root is to come.
    """

    capacity: int
    max_length: int
    device: torch.device
    texts: dict[int, Text] = field(default_factory=dict)
    entered: set[int] = field(default_factory=set)


class TextKeeper(ABC, Generic[Text]):
    """Keeps a text for every slot. A drafter adds what a text is, how it goes on, and what to draft after them all."""

    synthetic: ClassVar[bool] = False

    def __init__(self, max_nodes: int):
        self.needs = DraftNeeds(max_nodes=max_nodes)

    @abstractmethod
    def read(self, prompts: list[list[int]], max_length: int) -> list[Text]:
        """A text for every prompt; none gets longer than `max_length` tokens."""

    @abstractmethod
    def append(self, text: Text, tokens: Sequence[int]) -> None:
        """The text goes on. It may do so past an end of which the drafter is not told, but for one step only."""

    @abstractmethod
    def drafts(self, state: State[Text], vocab_size: int) -> list[tuple[list[int], list[int]]]:
        """Tokens and parents of every slot's tree; node 0 is the text's last token. Nothing where there is no text."""

    def open(self, capacity: int, max_length: int, device: torch.device) -> State[Text]:
        """No text yet."""
        return State(capacity, max_length, device)

    def start(self, state: State[Text], slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Texts begin."""
        state.texts.update(zip(slots, self.read(prompts, state.max_length), strict=True))
        state.entered.update(slots)

    def propose(self, state: State[Text], roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        """A tree after every text; only roots if no `levels` are wanted."""
        self.enter(state, roots)
        if levels == 0:
            return TokenTree.roots(roots)
        trees = self.drafts(state, noise.vocab_size)
        return TokenTree.from_lists(trees, state.device).only(roots >= 0)

    def enter(self, state: State[Text], roots: Tensor) -> None:
        """Texts that have begun get their first token."""
        if not state.entered:
            return
        first = roots.tolist()
        for slot in state.entered:
            if first[slot] >= 0:
                self.append(state.texts[slot], [first[slot]])
            else:
                del state.texts[slot]
        state.entered.clear()

    def observe(self, state: State[Text], tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Texts go on, or have ended."""
        for slot, tokens in enumerate(verdict.read(tree)):
            if tokens:
                self.append(state.texts[slot], tokens)
            else:
                state.texts.pop(slot, None)


class TextDrafter(TextKeeper[Text]):
    """A drafter that looks at one text at a time."""

    takes_levels: ClassVar[bool] = True

    @abstractmethod
    def draft(self, text: Text, vocab_size: int) -> tuple[list[int], list[int]]:
        """Tokens and parents of a tree; node 0 is the text's last token."""

    def drafts(self, state: State[Text], vocab_size: int) -> list[tuple[list[int], list[int]]]:
        """See TextKeeper."""
        texts = (state.texts.get(slot) for slot in range(state.capacity))
        return [([], []) if text is None else self.draft(text, vocab_size) for text in texts]
