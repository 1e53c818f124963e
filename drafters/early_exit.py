"""The target drafts for itself with some of its layers left out, on its own KV.

With the first layers alone, and the final norm and head: Elhoushi et al., LayerSkip, arXiv 2404.16710. Without layers
from its midst: Zhang et al., Draft & Verify, arXiv 2309.08168; Xia et al., SWIFT, arXiv 2410.06916. The layers that are
kept find the whole target's KV of the text, and write that of the draft where `verify` will write over it: there is
nothing to remember and nothing to commit. How well it drafts is up to the target; one that was not trained to exit
early seldom agrees with its own first layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core import DraftNeeds, TargetOutput, TreePolicy, Verdict
from specdec.drafters.draft_model import run_levels
from specdec.partial import with_layers
from specdec.sampling import DraftNoise
from specdec.target import Target
from specdec.tree.grow import check_width, count_expanded, grow
from specdec.tree.shallow import first_levels
from specdec.tree.static import chain
from specdec.tree.token_tree import TokenTree


class EarlyExit:
    """See the module. Its state is a Target of the kept layers on the target's KV.

    Args:
        exit_layer: keep so many layers, the first ones; or
        skip: leave out these layers, counted from 0.
        tree: the shape of the drafts; a chain of 4 by default.

    Raises:
        ValueError: not one of `exit_layer` and `skip`, or not made of layer numbers.
    """

    takes_levels: ClassVar[bool] = True

    def __init__(
        self, exit_layer: int | None = None, skip: Sequence[int] | None = None, tree: TreePolicy | None = None
    ):
        if (exit_layer is None) == (skip is None):
            raise ValueError(f"early_exit needs exit_layer or skip, and one of them; got {exit_layer!r} and {skip!r}")
        if exit_layer is not None and exit_layer < 1:
            raise ValueError(f"early_exit.exit_layer is {exit_layer!r}; expected a number of layers, at least 1")
        if skip is not None and (not skip or len(set(skip)) < len(skip) or min(skip) < 0):
            raise ValueError(f"early_exit.skip is {list(skip)!r}; expected numbers of layers from 0, each once")
        self.exit_layer, self.skip = exit_layer, skip
        self.policy = tree if tree is not None else chain(4)
        self.target: Target | None = None
        self.model: PreTrainedModel | None = None
        self._expanded = count_expanded(self.policy)
        self.needs = DraftNeeds(self.policy.max_nodes, on_device=True, scratch=1 + self._expanded)

    def attach(self, target: Target) -> EarlyExit:
        """See Drafter.

        Raises:
            ValueError: there are no such layers, none would be left out or kept, the tree is too wide, or it is not
                known how to leave layers out of such a model.
        """
        check_width(self.policy, target.vocab_size)
        made = copy(self)
        made.target, made.model = target, with_layers(target.model, self._kept(target.model))
        return made

    def _kept(self, model: PreTrainedModel) -> list[int]:
        count = model.config.get_text_config().num_hidden_layers
        skip = set(range(self.exit_layer, count) if self.exit_layer is not None else self.skip or ())
        if not skip or max(skip) >= count or len(skip) == count:
            setting = f"exit_layer={self.exit_layer}" if self.exit_layer is not None else f"skip={sorted(skip)}"
            raise ValueError(
                f"early_exit got {setting} for a target of {count} layers; expected some of the layers "
                f"0 to {count - 1} to be left out, and some to be kept"
            )
        return [layer for layer in range(count) if layer not in skip]

    def open(self, capacity: int, max_length: int, device: torch.device) -> Target:
        """The kept layers on the target's KV, which has been opened before.

        Raises:
            ValueError: it was not attached to a target.
        """
        if self.target is None or self.model is None:
            raise ValueError("early_exit drafts with the target's layers; attach it to a target before it is opened")
        return self.target.over(self.model)

    def start(self, state: Target, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """The target has read the prompts."""

    def propose(self, state: Target, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        """Run the root, then grow a tree behind it, of the policy's first `levels` if that is not None."""
        assert self.target is not None
        if levels == 0:
            return TokenTree.roots(roots)
        live = roots >= 0
        state.lengths.copy_(self.target.lengths)
        root = TokenTree.roots(roots)
        logits = state.extend(root.tokens, root.depths, root.words, root.sizes).logits[:, 0]  # [B, V]
        state.lengths.add_(live)
        run = run_levels(state, live, self._expanded)
        return grow(first_levels(self.policy, levels), roots, logits, run, noise).tree

    def observe(self, state: Target, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """The target keeps what was accepted."""
