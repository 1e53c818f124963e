"""The simplest head: a matrix a depth on the hidden state before the root. And a drafter of chains from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from specdec.core import DraftNeeds
from specdec.target import Target
from specdec.tree.token_tree import TokenTree


class SimpleHead(nn.Module):
    """A TrainableHead of `depth` linear layers; with `skip`, it never drafts the last so many tokens."""

    hidden_layers = (-1,)

    def __init__(self, hidden_size: int, vocab_size: int, depth: int, skip: int = 0):
        super().__init__()
        self.depth, self.hidden_size, self.vocab_size, self.skip = depth, hidden_size, vocab_size, skip
        self.layers = nn.ModuleList(nn.Linear(hidden_size, vocab_size) for _ in range(depth))

    @classmethod
    def new(cls, target: Target, depth: int = 3, skip: int = 0, vocabulary: int = 0) -> SimpleHead:
        config = target.model.config
        head = cls(config.hidden_size, vocabulary or config.vocab_size, depth, skip)
        return head.to(target.device)

    def bind(self, embedding, lm_head) -> None:
        """Needs nothing of it."""

    def predict(self, tokens, hidden, anchors):
        before = hidden[-1].gather(1, (anchors - 1)[..., None].expand(-1, -1, self.hidden_size))  # [B, A, H]
        logits = torch.stack([layer(before) for layer in self.layers], 2)  # [B, A, K, V]
        logits[..., self.vocab_size - self.skip :] = -torch.inf
        return logits

    def save(self, folder) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps({"depth": self.depth}))


@dataclass
class State:
    hidden: torch.Tensor  # [B, H], before every root


class SimpleChains:
    """Drafts the likeliest token of every depth."""

    def __init__(self, head: SimpleHead):
        self.head = head
        self.needs = DraftNeeds(head.depth + 1, (-1,))

    def open(self, capacity, max_length, device) -> State:
        return State(torch.zeros(capacity, self.head.hidden_size, dtype=next(self.head.parameters()).dtype))

    def start(self, state, slots, prompts, prefill) -> None:
        for row, (slot, prompt) in enumerate(zip(slots, prompts, strict=True)):
            state.hidden[slot] = prefill.hidden[-1][row, len(prompt) - 1]

    def propose(self, state, roots, noise) -> TokenTree:
        anchors = torch.ones(len(roots), 1, dtype=torch.int64)
        drafted = self.head.predict(roots[:, None], {-1: state.hidden[:, None]}, anchors).argmax(-1)[:, 0]  # [B, K]
        return TokenTree.chain(torch.cat([roots[:, None], drafted], 1))

    def observe(self, state, tree, verdict, output) -> None:
        state.hidden.copy_(output.hidden_at(verdict.last, [-1])[-1][:, 0])
