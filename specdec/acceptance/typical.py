"""Typical acceptance (Medusa, Cai et al., arXiv 2401.10774): a drafted token is good enough if it is not unusual.

A token is taken if its target probability is above min(epsilon, delta exp(-H)), H being the entropy of the target's
distribution at that place in nats: where the target is sure, only its favourites pass, where it is not, more do. The
longest path of such tokens is accepted, of several the likeliest. The token after it is the target's most likely one,
at any temperature, as in the paper, which so always has one token a step.

Guarantee: none on the distribution. At temperature 0 the text is the greedy one, for there only one token has any
probability.
Why it is not lossless: whether a token is taken depends on what was drafted and not on chance; a token below the
threshold can only come where nothing was drafted, and there only the favourite does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specdec.acceptance.lossy import deepest
from specdec.core import Verdict
from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Typical:
    """See the module. Lossy.

    Attributes:
        epsilon: probability that is always enough.
        delta: scale of the threshold where the target is unsure; the paper takes the root of epsilon.

    Raises:
        ValueError: a setting is not in (0, 1).
    """

    epsilon: float = 0.09
    delta: float = 0.3

    lossless: ClassVar[bool] = False
    shared_noise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"typical acceptance: {name} is {getattr(self, name)!r}; expected a number in (0, 1)")

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """`logits` `[B, N, V]`."""
        return deepest(tree, logits, sampling, self._fits)

    def _fits(self, probs: Tensor) -> Tensor:
        entropy = torch.special.entr(probs).sum(-1, keepdim=True)  # [B, 1]
        return probs > (self.delta * (-entropy).exp()).clamp_max(self.epsilon)
