"""How far what a head would draft is from what the target says, for every token that it would draft.

With q the head's distribution and p the target's, a drafted token is accepted with probability sum_x min(p(x), q(x))
(Leviathan et al., arXiv 2211.17192), which is 1 - TV(p, q). The losses:
    ce        -log q(the target's own token)
    kl        KL(p, q), over the tokens that the head can draft
    tv        total variation, 1 - acceptance: exactly what is wanted, but without a slope where p and q hardly meet
    lk        -log acceptance (LK losses, Samarin et al., arXiv 2602.23881): its slope is that of tv over acceptance
    lk_blend  w KL + (1 - w) TV with w = exp(-3 acceptance), the same paper's blend: KL far away, TV close by
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("ce", "kl", "tv", "lk", "lk_blend")
BLEND_FALL = 3.0  # the paper's best
SMALLEST = 1e-12  # acceptance, before its logarithm


def token_losses(kind: str, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
    """One number per drafted token.

    Args:
        kind: one of LOSSES.
        logits: `[..., V]` of the head, -inf for tokens that it never drafts.
        target_logits: `[..., V]` finite.
        labels: `[...]` int64, the target's own tokens.

    Returns:
        `[...]` float32; with ce, 0 for tokens that the head never drafts.
    """
    own = logits.float().log_softmax(-1)
    if kind == "ce":
        found = own.gather(-1, labels[..., None])[..., 0]
        return torch.where(found.isfinite(), -found, 0.0)
    target_logits = target_logits.float()
    if kind == "kl":
        return _kl(own, target_logits)
    overlap = acceptance(own, target_logits)
    if kind == "tv":
        return 1 - overlap
    if kind == "lk":
        return -overlap.clamp_min(SMALLEST).log()
    if kind == "lk_blend":
        share = torch.exp(-BLEND_FALL * overlap.detach())
        return share * _kl(own, target_logits) + (1 - share) * (1 - overlap)
    raise ValueError(f"unknown loss {kind!r}; expected one of: {', '.join(LOSSES)}")


def acceptance(own: Tensor, target_logits: Tensor) -> Tensor:
    """`[...]`: sum_x min(p(x), q(x)); `own` `[..., V]` are the head's log-probabilities."""
    return torch.minimum(own.exp(), target_logits.softmax(-1)).sum(-1)


def _kl(own: Tensor, target_logits: Tensor) -> Tensor:
    """KL from the target's distribution over the head's tokens. `own` `[..., V]` log-probabilities."""
    never = own == -torch.inf
    target = target_logits.masked_fill(never, -torch.inf).log_softmax(-1)
    difference = target.masked_fill(never, 0.0) - own.masked_fill(never, 0.0)
    return (target.exp() * difference).sum(-1)


def depth_weights(depth: int, decay: float) -> Tensor:
    """`[K]`, they sum to 1: what a deeper token is worth, as it is only looked at if those before were right."""
    return F.normalize(decay ** torch.arange(depth, dtype=torch.float32), p=1, dim=0)
