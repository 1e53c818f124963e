"""What a drafted token's acceptance and refusal leave, for rules that judge from the leaves up.

Below a node that is itself accepted only with some `chance` c, target probabilities count c times: a child is reached
with probability min(1, c target / draft), and refused it leaves max(0, c target - draft) to the node.
"""

from __future__ import annotations

import torch
from torch import Tensor


def arrival(target: Tensor, draft: Tensor, token: Tensor, chance: Tensor) -> Tensor:
    """Probability `[B]` that a child with `token` `[B, 1]` is accepted, given that it was drafted.

    Args:
        target, draft: `[B, V]`, at its parent.
        chance: `[B]`, of the parent.
    """
    wanted, drawn = target.gather(1, token)[:, 0], draft.gather(1, token)[:, 0]
    # a child the draft gives no probability to cannot have been drawn from it: it counts as fixed
    return (chance * wanted / torch.where(drawn > 0, drawn, 1.0)).clamp_max(1.0)


def reject(target: Tensor, draft: Tensor, token: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """The parent's target `[B, V]` and chance `[B]` once the child with `token` is refused. Arguments as `arrival`."""
    fixed = draft.gather(1, token) <= 0  # [B, 1]
    proposed = torch.where(fixed, torch.zeros_like(draft).scatter(1, token, 1.0), draft)
    left = (chance[:, None] * target - proposed).clamp_min(0)
    total = left.sum(-1)  # [B]
    missing = total + (1 - chance)
    left_chance = torch.where(missing > 0, total / missing.clamp_min(1e-38), 1.0)
    # nothing left but rounding: as before
    return torch.where(total[:, None] > 0, left / total[:, None].clamp_min(1e-38), target), left_chance


def without(draft: Tensor, token: Tensor) -> Tensor:
    """What the next sibling was drawn from, `[B, V]`: `draft` without `token`; zeros if nothing else was possible."""
    others = draft.scatter(1, token, 0.0)
    return others / others.sum(-1, keepdim=True).clamp_min(1e-38)
