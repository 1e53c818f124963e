"""No drafts: a tree of one node is plain decoding, through the same loop. Speed-ups are measured against it."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core import DraftNeeds, TargetOutput, Verdict
from specdec.sampling import DraftNoise
from specdec.tree.token_tree import TokenTree


class NoDrafter:
    """Proposes nothing."""

    needs = DraftNeeds(max_nodes=1, on_device=True)

    def open(self, capacity: int, max_length: int, device: torch.device) -> None:
        """Keeps no state."""

    def start(self, state: None, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Learns nothing."""

    def propose(self, state: None, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """Only the root."""
        return TokenTree.roots(roots)

    def observe(self, state: None, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Learns nothing."""
