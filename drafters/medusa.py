"""Extra heads on the target guess several tokens at once: Cai et al., Medusa, arXiv 2401.10774.

What a request needs between steps is one row: the hidden state of its last committed token, from which the target has
already drawn the root. Weights and formats are in `medusa_head`.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from specdec.core import DraftNeeds, TargetOutput, TreePolicy, Verdict
from specdec.drafters.draft_model import fit_vocabulary
from specdec.drafters.medusa_head import MedusaHead
from specdec.heads import bound
from specdec.sampling import DraftNoise
from specdec.target import Target
from specdec.tree.grow import Frontier, check_width, grow
from specdec.tree.shallow import first_levels
from specdec.tree.static import chain
from specdec.tree.token_tree import TokenTree


@dataclass(slots=True)
class State:
    """`hidden` `[B, H]`: the target's hidden state of every slot's last committed token, the one before the root."""

    hidden: Tensor


class Medusa:
    """See the module.

    Args:
        head: name of a trained head in the zoo, its folder, a hub id, or the head itself.
        tree: the shape of the drafts, at most as deep as there are heads; by default a chain of that length.

    Raises:
        ValueError: there is no such head, it is damaged, or it has too few heads or tokens for the tree.
    """

    kind: ClassVar[type[MedusaHead]] = MedusaHead
    takes_levels: ClassVar[bool] = True

    def __init__(self, head: str | Path | MedusaHead, tree: TreePolicy | None = None):
        self.head = self.kind.load(head) if isinstance(head, str | Path) else head
        if not isinstance(self.head, self.kind):
            raise ValueError(f"{self.head!r:.80} is no {self.kind.__name__}; give one, or the name of its folder")
        self.policy = tree if tree is not None else chain(self.head.depth)
        self.vocab_size, self.hidden_size = self.head.vocab_size, self.head.hidden_size
        if self.policy.depth > self.head.depth:
            raise ValueError(
                f"the tree is {self.policy.depth} tokens deep, but there are {self.head.depth} heads, one for each "
                f"depth; give a tree of depth {self.head.depth} or less"
            )
        check_width(self.policy, self.vocab_size)
        self.needs = DraftNeeds(self.policy.max_nodes, self.head.hidden_layers, on_device=True)

    def attach(self, target: Target) -> Medusa:
        """See Drafter."""
        made = copy(self)
        made.head = bound(self.head, target)
        return made

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """A row for every slot."""
        dtype = next(self.head.parameters()).dtype
        return State(torch.zeros(capacity, self.hidden_size, dtype=dtype, device=device))

    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Keep the hidden states of the prompts' last tokens."""
        state.hidden[slots] = 0
        if read := [i for i, prompt in enumerate(prompts) if prompt]:
            last = [len(prompts[i]) - 1 for i in read]
            state.hidden[[slots[i] for i in read]] = prefill.hidden[-1][read, last].to(state.hidden.dtype)

    def propose(self, state: State, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        """Ask one head a level, for the policy's first `levels` if that is not None."""
        if levels == 0:
            return TokenTree.roots(roots)
        above = roots.clamp_min(0)[:, None, None]  # [B, 1, 1]

        def guess(tokens: Tensor) -> Tensor:
            return fit_vocabulary(self.head.guess(state.hidden, tokens), noise.vocab_size)

        def expand(frontier: Frontier) -> Tensor:
            return guess(torch.cat([above.expand(-1, frontier.path.shape[1], -1), frontier.path], -1))

        return grow(first_levels(self.policy, levels), roots, guess(above)[:, 0], expand, noise).tree

    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Keep the hidden state of the last accepted node."""
        state.hidden.copy_(output.hidden_at(verdict.last, [-1])[-1][:, 0])
