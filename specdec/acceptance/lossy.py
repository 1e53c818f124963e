"""What the lossy rules share: any token that the target does not mind is taken, the deepest such node wins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.acceptance.paths import tokens_to, verdict_at
from specdec.core import Verdict
from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree


def deepest(tree: TokenTree, logits: Tensor, sampling: StepSampling, fits: Callable[[Tensor], Tensor]) -> Verdict:
    """The deepest node that can be reached over tokens that fit, of several the one with the likeliest path, and the
    most likely token after it.

    Args:
        fits: target probabilities `[B, V]` to which tokens are good enough, `[B, V]` bool. At temperature 0 all
            probability is on one token, and no token without any fits.
    """
    rows = torch.arange(tree.batch_size, device=logits.device)
    reached = torch.zeros_like(tree.tokens, dtype=torch.bool)  # [B, N]
    reached[:, 0] = tree.sizes > 0
    likely = torch.zeros(tree.tokens.shape, dtype=torch.float64, device=logits.device)  # log-probability of the path
    best = torch.zeros_like(tree.tokens)  # [B, N], the most likely token after each node
    for place in range(tree.max_nodes):
        if place and not sampling.at_once and not reached[:, place].any():
            continue
        node = torch.full_like(rows, place)
        path = tokens_to(tree, node, reached[:, place]) if place else tree.tokens[:, :0]
        probs = sampling.probs(logits[:, place], path)  # [B, V]
        best[:, place] = probs.argmax(-1)
        if not sampling.at_once and not (tree.parents == place).any():
            continue
        fitting = (fits(probs) & (probs > 0)).gather(1, tree.tokens)  # [B, N]
        following = (tree.parents == place) & reached[:, place, None] & fitting
        reached = reached | following
        onward = likely[:, place, None] + probs.gather(1, tree.tokens).log()
        likely = torch.where(following, onward, likely)
    depths = torch.where(reached, tree.depths, -1)
    rivals = reached & (depths == depths.amax(-1, keepdim=True))  # [B, N]
    last = torch.where(rivals, likely, -torch.inf).argmax(-1)  # [B]
    return verdict_at(tree, last, best[rows, last])
