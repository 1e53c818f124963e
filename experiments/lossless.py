"""Is a method's text the baseline's? Where they part, was it rounding that decided?

Two kernels that add the same numbers in another order give logits that differ in the last bits. Where the two best
tokens are closer than that, either may come out, and the texts part for good. Such a *tie* is no fault of a method; any
other difference is. The tokens' scores are looked up in the baseline's own forward: up to the difference both texts are
the same, so it is one prefill and one step.

An exact target (see `specdec.exact`) does not round: no difference is a tie there.

Float32 and float64: a tie is a gap of at most 1e-4. Lower precisions: logits are stored in steps (`eps` times their
power of two, 0.125 for a bfloat16 logit between 16 and 32) and inherit the rounding of all layers below, so a tie is a
gap of at most `TIE_SPACINGS` such steps at the position's largest logit, however small those of the two tokens are:
they come of the same sums. (Measured on a Llama of 16 layers, one step at a time against one prefill, in steps at the
largest logit: the gap of the two best tokens moves by 0.5 in the median, 2.6 in one of a hundred positions, and 4 at
most; logits under a quarter of the largest move by 0.4, 2.2 and 4.5, which is up to thousands of steps of their own.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from specdec import noise
from specdec.core import AcceptanceRule
from specdec.sampling import Sampler, SamplingParams
from specdec.target import Target
from specdec.tree.token_tree import TokenTree

TIE_GAP = 1e-4
TIE_SPACINGS = 4


@dataclass(frozen=True, slots=True)
class Check:
    """What comparing one text with the baseline's gave.

    Attributes:
        comparable: the rule promises the baseline's very tokens.
        equal: they are the same; None if not comparable.
        position: index of the first new token that differs.
        gap: between the scores of the two tokens there, in the baseline's forward.
        top2_gap: between the two best scores there.
        threshold: what a tie may have.
        tie: `gap` is at most `threshold`, and the target is not exact.
    """

    comparable: bool
    equal: bool | None = None
    position: int | None = None
    gap: float | None = None
    top2_gap: float | None = None
    threshold: float | None = None
    tie: bool | None = None

    def as_row(self) -> dict[str, Any]:
        """For requests.jsonl, which has no infinity: the gap to a token that is ruled out is null."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def comparable(rule: AcceptanceRule, sampling: SamplingParams) -> bool:
    """Whether texts can be compared token by token: the rule draws with the target's noise, or nothing is drawn."""
    return rule.shared_noise or sampling.temperature == 0


def compare(
    target: Target, prompt: Sequence[int], expected: Sequence[int], got: Sequence[int], sampling: SamplingParams
) -> Check:
    """Compare new tokens with the baseline's.

    Args:
        target: of the baseline; used, and left empty, where the texts differ.
        prompt: token ids of both.
        expected, got: new token ids of the baseline and of the method.
        sampling: of both.
    """
    if list(expected) == list(got):
        return Check(True, equal=True)
    position = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
    if position is None:  # one ended earlier though all its tokens are the other's: never a matter of rounding
        return Check(True, equal=False, position=min(len(expected), len(got)), tie=False)
    scores, logits = _scores(target, [*prompt, *expected[:position]], position > 0, sampling)
    ours, theirs = expected[position], got[position]
    best = scores.topk(2).values
    gap = abs(float(scores[ours] - scores[theirs]))
    largest = max(float(logits.max()), abs(float(logits[ours])), abs(float(logits[theirs])))
    threshold = tie_threshold(largest, target.model.dtype)
    threshold /= sampling.temperature or 1.0
    tie = gap <= threshold and not target.block_rows
    return Check(True, False, position, gap, float(best[0] - best[1]), threshold, tie)


def tie_threshold(logit: float, dtype: torch.dtype) -> float:
    """The largest gap at a logit of this size that rounding alone explains."""
    if dtype in (torch.float32, torch.float64):
        return TIE_GAP
    spacing = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(max(logit, torch.finfo(dtype).tiny)))
    return TIE_SPACINGS * spacing


@torch.inference_mode()
def _scores(target: Target, text: list[int], stepped: bool, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """What the baseline chose the next token by, and the raw logits: both `[V]` float32."""
    target.open(1, len(text) + 1)
    if stepped:
        target.prefill([0], [text[:-1]])
        root = TokenTree.roots(torch.tensor([text[-1]], device=target.device))
        logits, position = target.verify(root).logits, target.lengths
    else:
        logits, position = target.prefill([0], [text]).logits, target.lengths - 1
    sampler = Sampler(1, target.vocab_size, target.device)
    sampler.start(0, sampling, list(text))
    step = sampler.at(position, 1, [0])
    scores = sampler.process(logits, logits.new_empty((1, 1, 0), dtype=torch.int64), [0])[0, 0]
    if sampling.temperature > 0:
        scores = scores + noise.gumbel(step.keys(noise.TARGET_STREAM, 0), scores.shape[-1])[0]
    target.release(0)
    return scores, logits[0, 0].float()
