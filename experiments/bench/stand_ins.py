"""What stands in for a model, a draft and a text where only time counts: a step costs the same whatever they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.cache import TreeCache
from specdec.core import DraftNeeds, TargetOutput, Verdict
from specdec.sampling import DraftNoise, StepSampling
from specdec.tree.token_tree import TokenTree

EIGHT_BILLION = {  # Llama-3-8B's shape
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
SMALL = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip


def random_model(device: str) -> LlamaForCausalLM:
    """A Llama of the shape for this device, in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        config = LlamaConfig(**(EIGHT_BILLION if device == "cuda" else SMALL), dtype=dtype)
        return LlamaForCausalLM(config).to(dtype).eval()


class AnyChain:
    """Drafts zeros."""

    def __init__(self, nodes: int):
        self.needs = DraftNeeds(max_nodes=nodes, on_device=True)

    def open(self, capacity: int, max_length: int, device: torch.device) -> None:
        """Keeps no state."""

    def start(self, state: None, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Learns nothing."""

    def propose(self, state: None, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """A chain of zeros."""
        return TokenTree.chain(torch.cat([roots[:, None], roots.new_zeros(len(roots), self.needs.max_nodes - 1)], 1))

    def observe(self, state: None, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Learns nothing."""


@dataclass(frozen=True)
class Accepting:
    """Accepts the first `count` nodes of a chain, after looking at the logits as greedy decoding does."""

    count: int
    lossless: ClassVar[bool] = False
    shared_noise: ClassVar[bool] = True

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """See AcceptanceRule."""
        node = torch.arange(tree.max_nodes, device=logits.device)
        path = torch.where(node < self.count, node, -1).expand(tree.batch_size, -1)
        num_accepted = torch.full_like(tree.sizes, min(self.count, tree.max_nodes))
        return Verdict(path, num_accepted, logits.argmax(-1)[:, 0])


@torch.inference_mode()
def fill(cache: TreeCache) -> None:
    """Normal numbers for keys and values, the same each time: zeros may cost less power, and so less time."""
    generator = torch.Generator(cache.device).manual_seed(0)
    for arena in cache.arenas:
        arena.normal_(generator=generator)
