"""A draft model with another tokenizer than the target's, through text.

The draft model reads the target's text in its own tokens, drafts a chain or a tree of them, and every path is written
as text and tokenized for the target. All drafts are fixed children, so every rule stays what it is; at temperature 0
and above the draft model's most likely tokens are drafted.
Universal assisted generation: Timor et al., arXiv 2502.05202 (string-level exact match), with trees and batches.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec import loading
from specdec.core import TargetOutput, TreePolicy
from specdec.drafters import text_drafter
from specdec.drafters.draft_model import run_levels, would_open
from specdec.drafters.text_drafter import TextKeeper
from specdec.drafters.translation import BothTexts, Translator
from specdec.inspection import max_positions
from specdec.sampling import Sampler
from specdec.target import Target
from specdec.tree.grow import check_width, count_expanded, grow
from specdec.tree.static import chain
from specdec.tree.token_tree import TokenTree, merge_paths

ROOM = 2  # draft tokens that there is room for, for every token of the target


@dataclass(slots=True, kw_only=True)
class State(text_drafter.State[BothTexts]):
    """Texts by slot, and the draft model's KV.

    Attributes:
        model: the draft model with its cache.
        room: most draft tokens of a text; a longer one goes on with its last half.
        sampler: draws nothing: the most likely tokens are drafted.
    """

    model: Target
    room: int
    sampler: Sampler


class Universal(TextKeeper[BothTexts]):
    """See the module.

    Args:
        model: any causal LM, on its own device and in its own dtype.
        tree: the shape of the drafts in the draft model's tokens; a chain of 4 by default.
        tokenizer: the target's; None for the one beside the target.
        draft_tokenizer: the draft model's; None for the one beside it.
        max_nodes: most nodes of a tree in the target's tokens, the root included. The most likely paths come first.
        window: target tokens at the end of a text, at least, that are tokenized again at every step.
        backend: of the draft model's attention.

    Raises:
        ValueError: the model cannot be used (see Target), has no tokenizer, or a number is out of range.
    """

    method: ClassVar[str] = "universal"  # for messages

    def __init__(
        self,
        model: PreTrainedModel,
        tree: TreePolicy | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
        max_nodes: int = 16,
        window: int = 24,
        backend: str = "auto",
    ):
        if max_nodes < 2 or window < 8:
            raise ValueError(f"{self.method} needs max_nodes >= 2 and window >= 8; got {max_nodes} and {window}")
        super().__init__(max_nodes)
        self.model, self.window, self.backend = model, window, backend
        self.policy = tree if tree is not None else chain(4)
        check_width(self.policy, Target(model, backend=backend).vocab_size)  # looks the model over, too
        self._own = draft_tokenizer if draft_tokenizer is not None else self._beside(model, "draft_tokenizer")
        self._translator = Translator(tokenizer, self._own, window) if tokenizer is not None else None

    def attach(self, target: Target) -> Universal:
        """Take the target's tokenizer, unless it was given.

        Raises:
            ValueError: there is none beside the target.
        """
        if self._translator is not None:
            return self
        made = copy(self)
        made._translator = Translator(self._beside(target.model, "tokenizer"), self._own, self.window)
        return made

    def _beside(self, model: PreTrainedModel, setting: str) -> PreTrainedTokenizerBase:
        """The tokenizer beside a model.

        Raises:
            ValueError: the model was made in memory, or its folder has none.
        """
        if not model.name_or_path:
            raise ValueError(f"{self.method} finds no tokenizer beside a model made in memory; set `{setting}`")
        return loading.load_tokenizer(model.name_or_path)

    @property
    def translator(self) -> Translator:
        """Between the target's tokens and the draft model's.

        Raises:
            ValueError: the target's tokenizer is not known yet.
        """
        if self._translator is None:
            raise ValueError(
                f"{self.method} does not know the target's tokenizer; attach it to a target, or set `tokenizer`"
            )
        return self._translator

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """A cache with room for the draft model's tokens of every text."""
        model = Target(self.model, backend=self.backend)
        nodes, room = self._room(max_length)
        model.open(capacity, room, nodes)
        sampler = Sampler(capacity, model.vocab_size, model.device)
        return State(capacity, max_length, device, model=model, room=room, sampler=sampler)

    def kv_bytes(self, capacity: int, max_length: int, device: torch.device) -> int:
        """See Drafter."""
        nodes, room = self._room(max_length)
        return would_open(Target(self.model, backend=self.backend), capacity, room, nodes, device)

    def _room(self, max_length: int) -> tuple[int, int]:
        """Nodes behind a text, and tokens of the draft model's text, at most."""
        nodes = count_expanded(self.policy) + 1
        most = ROOM * max_length + nodes
        return nodes, min(most, max_positions(self.model) or most)

    def start(  # type: ignore[override]
        self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput
    ) -> None:
        """The draft model reads the prompts."""
        super().start(state, slots, prompts, prefill)
        for slot in slots:
            state.model.release(slot)
        self._catch_up(state, slots)

    def read(self, prompts: list[list[int]], max_length: int) -> list[BothTexts]:
        """See TextKeeper."""
        return [self.translator.begin(prompt) for prompt in prompts]

    def append(self, text: BothTexts, tokens: list[int]) -> None:  # type: ignore[override]
        """See TextKeeper."""
        self.translator.follow(text, tokens)

    def drafts(  # type: ignore[override]
        self, state: State, vocab_size: int
    ) -> list[tuple[list[int], list[int]]]:
        """Grow a tree of draft tokens after every text, and translate its paths."""
        drafted = self._grow(state, *self._after_texts(state))
        trees: list[tuple[list[int], list[int]]] = [([], [])] * state.capacity
        for slot, text in state.texts.items():
            paths = [path[1:] for path in drafted.paths(slot)]
            found = self.translator.continuations(text, paths, vocab_size)
            trees[slot] = merge_paths(text.tail[-1], found, self.needs.max_nodes)
        return trees

    @torch.inference_mode()
    def _catch_up(self, state: State, slots: list[int]) -> tuple[list[int], Tensor | None]:
        """The draft model reads what is new, the last token at least; those that have any, and logits `[b, V]`."""
        model = state.model
        reading = sorted(slot for slot in slots if state.texts[slot].tokens)
        if not reading:
            return [], None
        lengths, pieces = [state.room] * state.capacity, []
        for slot in reading:
            text = state.texts[slot]
            text.shorten(state.room, self.translator.draft.prefix)
            text.read = lengths[slot] = min(text.read, len(text.tokens) - 1)
            pieces.append([min(token, model.vocab_size - 1) for token in text.tokens[text.read :]])
            text.read = len(text.tokens)
        model.cache.rewind(torch.tensor(lengths, dtype=torch.int32, device=model.device))
        return reading, model.prefill(reading, pieces).logits[:, 0]

    @torch.inference_mode()
    def _after_texts(self, state: State) -> tuple[Tensor, Tensor]:
        """Which texts the draft model has read, `[B]` bool, and its logits `[B, V]` after them; on its device."""
        model = state.model
        reading, logits = self._catch_up(state, list(state.texts))
        live = torch.zeros(state.capacity, dtype=torch.bool, device=model.device)
        if logits is None:
            return live, torch.zeros(state.capacity, model.vocab_size, device=model.device)
        index = torch.tensor(reading, device=model.device)
        first = logits.new_zeros(state.capacity, model.vocab_size).index_copy(0, index, logits)
        return live.index_fill(0, index, True), first

    @torch.inference_mode()
    def _grow(self, state: State, live: Tensor, logits: Tensor) -> TokenTree:
        """Trees `[B, N]` of draft tokens on the host after the texts that are `live`; the roots mean nothing."""
        model = state.model
        roots = live.long() - 1  # [B]
        noise = state.sampler.at(model.lengths, self.policy.max_nodes, []).draft_noise(False)
        run = run_levels(model, live, count_expanded(self.policy))
        tree = grow(self.policy, roots, logits, run, noise).tree
        return TokenTree(tree.tokens.cpu(), tree.parents.cpu(), tree.sizes.cpu())
