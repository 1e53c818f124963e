"""What a drafted token's acceptance and refusal leave, for rules that judge from the leaves up.

Below a node that is itself accepted only with some `chance` c, target probabilities count c times: a child is reached
with probability min(1, c target / draft), and refused it leaves max(0, c target - draft) to the node. A child that the
draft gives no probability to cannot have been drawn from it: it counts as fixed.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, where


def arrival(wanted: Tensor, offered: Tensor, chance: Tensor) -> Tensor:
    """Probability `[B]` that a child is accepted, given that it was drafted.

    Args:
        wanted, offered: `[B]`, its token's probability by the target and by the draft.
        chance: `[B]`, of its parent.
    """
    return (chance * wanted / where(offered > 0, offered, 1.0)).clamp_max(1.0)


class Left(NamedTuple):
    """What a refused child leaves.

    Attributes:
        weights: `[B, V]`, of the parent's tokens, not normalised.
        total: `[B]`, their sum; 0 if nothing is left but rounding, and then the target stays as it was.
        chance: `[B]`, of the parent.
    """

    weights: Tensor
    total: Tensor
    chance: Tensor


def reject(target: Tensor, draft: Tensor, token: Tensor, chance: Tensor) -> Left:
    """The child with `token` `[B, 1]` is refused; `target` and `draft` `[B, V]` and `chance` `[B]` are its parent's."""
    wanted, offered = target.gather(1, token), draft.gather(1, token)  # [B, 1]
    drawn = offered > 0
    weights = (target * chance[:, None]).addcmul_(draft.to(target.dtype), drawn.to(target.dtype), value=-1)
    own = where(drawn, chance[:, None] * wanted - offered, 0.0)  # of a fixed child, which is drafted for certain
    weights = weights.scatter_(1, token, own.to(target.dtype)).clamp_min_(0)
    total = weights.sum(-1)  # [B]
    missing = total + (1 - chance)
    return Left(weights, total, where(missing > 0, total / missing.clamp_min(1e-38), 1.0))


def without(draft: Tensor, token: Tensor) -> Tensor:
    """What the next sibling was drawn from, `[B, V]`: `draft` without `token`; zeros if nothing else was possible."""
    others = draft.scatter(1, token, 0.0)
    return others.div_(others.sum(-1, keepdim=True).clamp_min(1e-38))
