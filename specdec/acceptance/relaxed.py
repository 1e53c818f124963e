"""Relaxed acceptance, as serving engines have it: a drafted token is good enough if it is among the target's best.

TensorRT-LLM's relaxed acceptance takes a token of the target's top k that is not too far from the best one, SGLang's
takes one above a probability threshold. Here a token passes if it is among the `top_k` most likely ones and has at
least `ratio` of the most likely one's probability. The longest path of such tokens is accepted, of several the
likeliest. The token after it is the target's most likely one, at any temperature.

Guarantee: none on the distribution. At temperature 0 the text is the greedy one, for there only one token has any
probability.
Why it is not lossless: whether a token is taken depends on what was drafted and not on chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from specdec.acceptance.lossy import deepest
from specdec.core import Verdict
from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Relaxed:
    """See the module. Lossy.

    Attributes:
        top_k: how many of the target's tokens pass, those as likely as the last of them included; 0 does not count.
        ratio: least share of the most likely token's probability; 0 does not ask for any.

    Raises:
        ValueError: a setting is out of its range, or every token would pass.
    """

    top_k: int = 10
    ratio: float = 0.3

    lossless: ClassVar[bool] = False
    shared_noise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.top_k) is not int or self.top_k < 0:
            raise ValueError(f"relaxed acceptance: top_k is {self.top_k!r}; expected an integer, at least 0")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"relaxed acceptance: ratio is {self.ratio!r}; expected a number in [0, 1]")
        if self.top_k == 0 == self.ratio:
            raise ValueError("relaxed acceptance: top_k and ratio are 0, so that every token passes; set one of them")

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """`logits` `[B, N, V]`."""
        return deepest(tree, logits, sampling, self._fits)

    def _fits(self, probs: Tensor) -> Tensor:
        passing = probs >= self.ratio * probs.amax(-1, keepdim=True)
        if self.top_k:
            least = probs.topk(min(self.top_k, probs.shape[-1])).values[:, -1:]  # [B, 1]
            passing = passing & (probs >= least)
        return passing
