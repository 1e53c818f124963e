"""A draft model with another tokenizer than the target's, by the tokens that both have.

The draft model reads the target's text in its own tokens, as for `universal`, but what it drafts are tokens that both
vocabularies share: its distribution over these, made to sum to one, in the target's vocabulary. So children are drawn
from known probabilities, or with the target's own noise, and every rule stays what it is. A token that only one of them
has is never drafted.
Token-level intersection: Timor et al., arXiv 2502.05202.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.core import TreePolicy
from specdec.drafters.draft_model import run_levels
from specdec.drafters.universal import State, Universal
from specdec.sampling import DraftNoise
from specdec.target import Target
from specdec.tree.grow import Frontier, check_width, count_expanded, grow
from specdec.tree.shallow import first_levels
from specdec.tree.static import chain
from specdec.tree.token_tree import TokenTree

LEAST = 0.01  # of the smaller vocabulary: with less in common, two tokenizers are of different worlds


class Intersection(Universal):
    """See the module.

    Args:
        model: any causal LM, on its own device and in its own dtype.
        tree: the shape of the drafts; a chain of 4 by default.
        tokenizer: the target's; None for the one beside the target.
        draft_tokenizer: the draft model's; None for the one beside it.
        window: target tokens at the end of a text, at least, that are tokenized again at every step.
        backend: of the draft model's attention.

    Attributes:
        own: `[V]` int64, for every token of the target the draft model's token of the same text, -1 for none; on the
            draft model's device. None before it is attached to a target.

    Raises:
        ValueError: see Universal.
    """

    method: ClassVar[str] = "intersection"
    takes_levels: ClassVar[bool] = True

    def __init__(
        self,
        model: PreTrainedModel,
        tree: TreePolicy | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
        window: int = 24,
        backend: str = "auto",
    ):
        policy = tree if tree is not None else chain(4)
        super().__init__(model, policy, tokenizer, draft_tokenizer, policy.max_nodes, window, backend)
        self.own: Tensor | None = None

    def attach(self, target: Target) -> Intersection:
        """Find the tokens that both have.

        Raises:
            ValueError: there are too few, or fewer than the tree has children a node; or see Universal.
        """
        made = copy(self)
        made._translator = super().attach(target).translator
        size, draft_size = target.vocab_size, self.model.config.get_text_config().vocab_size
        words = made._translator.target.words(size)
        draft_words = made._translator.draft.words(draft_size)
        shared = {token: draft_words[word] for word, token in words.items() if word in draft_words}
        if len(shared) < max(1, LEAST * min(size, draft_size)):
            raise ValueError(
                f"the draft model and the target share {len(shared)} tokens, of {draft_size} and {size}; expected "
                f"{LEAST:.0%} of the smaller vocabulary at least. Use drafter=universal, which goes through text, or "
                "another draft model"
            )
        check_width(self.policy, len(shared))
        own = torch.full((size,), -1)
        own[list(shared)] = torch.tensor(list(shared.values()))
        made.own = own.to(self.model.device)
        return made

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """See Universal.

        Raises:
            ValueError: it was not attached to a target.
        """
        if self.own is None:
            raise ValueError("intersection drafts in the target's tokens; attach it to a target before it is opened")
        return super().open(capacity, max_length, device)

    def propose(self, state: State, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:  # type: ignore[override]
        """Read what is new, then grow a tree, of the policy's first `levels` if that is not None."""
        self.enter(state, roots)
        if levels == 0:
            return TokenTree.roots(roots)
        assert self.own is not None
        own = self.own
        live, logits = self._after_texts(state)
        run = run_levels(state.model, live, count_expanded(self.policy))

        def fit(drafted: Tensor) -> Tensor:
            """`[B, ..., V']` of the draft model to `[B, ..., V]`; all the same after a text of which it can read
            nothing."""
            known = torch.where(live.view(-1, *[1] * (drafted.dim() - 1)), drafted, 0.0)
            shared = known.index_select(-1, own.clamp_min(0)).masked_fill(own < 0, float("-inf"))
            return shared.to(state.device)

        def expand(frontier: Frontier) -> Tensor:
            tokens = own[frontier.tokens.to(own.device)].clamp_min(0)  # ruled out by the settings, yet taken: any
            return fit(run(replace(frontier, tokens=tokens)))

        return grow(first_levels(self.policy, levels), roots, fit(logits), expand, noise).tree
