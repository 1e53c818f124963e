"""Coupled acceptance: the target's token at every node is fixed by noise, and the walk follows it.

At a node the target draws the Gumbel-argmax of its processed logits, with noise that is a pure function of (request
seed, absolute position, token id); at temperature 0 that is the argmax. The walk goes to the child that carries the
token and stops where there is none; the last token drawn is the next root.

Guarantee: the text is the one plain decoding with the same seed writes, token for token, whatever was drafted.
Why: along the walk each token is the target's own draw given the text so far, with noise that speculation cannot touch.
The Gumbel-max trick makes the draw exact (Maddison et al., arXiv 1411.0030).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specdec.acceptance.paths import row_of
from specdec.core import Verdict
from specdec.kernels.accept import accept
from specdec.kernels.target_tokens import target_tokens
from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Coupled:
    """See the module. Lossless as an equality."""

    lossless: ClassVar[bool] = True
    shared_noise: ClassVar[bool] = True

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """`logits` `[B, N, V]`."""
        return follow(tree, logits, sampling)


def follow(tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
    """Down the tree along the target's own tokens. For all nodes at once where that is cheap (an argmax) or done by a
    kernel; else step by step."""
    if sampling.raw:
        targets = logits.max(-1).indices  # [B, N]; what argmax gives, for a quarter of its time in bfloat16 on a CPU
    elif sampling.at_once:
        scores = sampling.penalised(tree, logits)
        targets = target_tokens(scores, sampling.positions, tree.depths, tree.sizes, *sampling.settings)
    else:
        return walk(tree, logits, sampling)
    return Verdict(*accept(tree.tokens, tree.parents, tree.sizes, tree.words, targets))


def walk(tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
    """Draw only at the nodes the walk reaches: noise and processors over a vocabulary are what costs."""
    rows = torch.arange(tree.batch_size, device=logits.device)
    node = torch.zeros_like(rows)  # [B]
    walking = tree.sizes > 0  # [B]
    next_token = torch.zeros_like(rows)
    path = torch.full_like(tree.tokens, -1)  # [B, N]
    below = path.clone()  # tokens drafted below the root, along the path
    for depth in range(tree.max_nodes):
        path[:, depth] = torch.where(walking, node, -1)
        token = sampling.draw(row_of(logits, node), depth, below[:, :depth])
        next_token = torch.where(walking, token, next_token)
        child = tree.child(node, token)
        walking = walking & (child >= 0)
        node = torch.where(walking, child, node)
        below[:, depth] = torch.where(walking, token, -1)
        if not walking.any():
            break
    return Verdict(path, (path >= 0).sum(-1, dtype=torch.int32), next_token)
