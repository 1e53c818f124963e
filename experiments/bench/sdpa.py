"""The rivals that are one call of torch's SDPA for the whole batch, over a dense mask, and which way torch goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from specdec.experiments.bench.inputs import Inputs
from specdec.kernels.tree_attention.naive import visible_nodes

ALIGNMENT = 16  # slots of a mask's row in memory: torch's memory-efficient kernel would copy others first


@dataclass(frozen=True)
class Sdpa:
    """One prepared call."""

    q: Tensor  # [B, heads, rows, D]
    mask: Tensor  # [B, 1, rows, S]
    grouped: bool
    unpack: Callable[[Tensor], Tensor]  # [B, heads, rows, D] -> [R, Hq, D]

    def __call__(self, k: Tensor, v: Tensor) -> Tensor:
        """`k`, `v` `[B, Hkv, room, D]`."""
        slots = self.mask.shape[3]
        keys, values = k[:, :, :slots], v[:, :, :slots]
        return self.unpack(
            scaled_dot_product_attention(self.q, keys, values, attn_mask=self.mask, enable_gqa=self.grouped)
        )

    def path(self, k: Tensor, v: Tensor) -> str:
        """The kernel that torch chooses for this call, in its own words, "unknown" where it does not tell."""
        choose = getattr(torch, "_fused_sdp_choice", None)
        if choose is None:
            return "unknown"
        slots = self.mask.shape[3]
        keys, values = k[:, :, :slots], v[:, :, :slots]
        choice = choose(self.q, keys, values, attn_mask=self.mask, enable_gqa=self.grouped)
        return SDPBackend(choice).name.lower().replace("_", " ")


def make_sdpa(inputs: Inputs) -> Sdpa:
    """As a user would write it: a boolean mask and grouped heads. On CUDA that may be the plain maths."""
    grouped = inputs.cell.heads != inputs.cell.kv_heads
    return Sdpa(batched(inputs), dense_mask(inputs), grouped, lambda out: out.transpose(1, 2).flatten(0, 1))


def make_packed_sdpa(inputs: Inputs) -> Sdpa:
    """As an expert would: the query heads of a KV head are rows of one matrix, the mask is repeated and added."""
    cell = inputs.cell
    group = cell.heads // cell.kv_heads
    heads = batched(inputs).unflatten(1, (cell.kv_heads, group))  # [B, Hkv, G, N, D]
    mask = dense_mask(inputs).repeat(1, 1, group, 1)  # [B, 1, G * N, S]
    slots = mask.shape[3]
    added = inputs.q.new_zeros(*mask.shape[:3], -(-slots // ALIGNMENT) * ALIGNMENT)[..., :slots]
    added.masked_fill_(~mask, float("-inf"))

    def unpack(out: Tensor) -> Tensor:
        return out.unflatten(2, (group, cell.nodes)).permute(0, 3, 1, 2, 4).reshape(-1, cell.heads, cell.dim)

    return Sdpa(heads.flatten(2, 3), added, False, unpack)


def batched(inputs: Inputs) -> Tensor:
    """q `[R, Hq, D]` -> `[B, Hq, N, D]`."""
    return inputs.q.view(inputs.cell.batch, inputs.cell.nodes, *inputs.q.shape[1:]).transpose(1, 2)


def dense_mask(inputs: Inputs) -> Tensor:
    """`[B, 1, N, S]` bool, S the longest sequence's slots."""
    cell = inputs.cell
    longest = max(cell.contexts) + cell.nodes
    mask = torch.zeros(cell.batch, 1, cell.nodes, longest, dtype=torch.bool, device=inputs.q.device)
    for b, context in enumerate(cell.contexts):
        rows = slice(b * cell.nodes, (b + 1) * cell.nodes)
        words = None if inputs.words is None else inputs.words[rows]
        mask[b, :, :, :context] = True
        mask[b, :, :, context : context + cell.nodes] = visible_nodes(words, cell.nodes, cell.nodes).to(mask.device)
    return mask
