"""Is a method's text the baseline's? Where they part, was it rounding that decided?

Two kernels that add the same numbers in another order give logits that differ in the last bits. Where the two best
tokens are closer than that, either may come out, and the texts part for good. Such a *tie* is no fault of a method; any
other difference is. The tokens' scores are looked up in the baseline's own forward: up to the difference both texts are
the same, so it is one prefill and one step.

The position's *noise* is what rounding does there: the largest difference of a logit between one token's forward pass
and that of a tree with the same path. A difference that rounding alone cannot make is a bug, however close the tokens
are: more than `NOISE_TIES` times a tie's gap (each of two logits moves by it), and any at all of an exact target (see
`specdec.exact`), which does not round.

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
NOISE_TIES = 2
GREEDY = SamplingParams()
TREE_DEPTH = 4  # tokens of a text that lie in the tree whose noise is measured


@dataclass(frozen=True, slots=True)
class Check:
    """What comparing one text with the baseline's gave.

    Attributes:
        comparable: the rule promises the baseline's very tokens.
        equal: they are the same; None if not comparable.
        position: index of the first new token that differs.
        gap: between the scores of the two tokens there, in the baseline's forward.
        top2_gap: between the two best scores there.
        threshold: what a tie may have, at the scale of the scores.
        tie: rounding explains the difference: `gap` is at most `threshold`, `noise` is no more than rounding makes,
            and the target is not exact. Else it is a bug.
        tokens: the baseline's and the method's token there.
        noise: largest difference of a logit there between one token's forward pass and another with the same text.
    """

    comparable: bool
    equal: bool | None = None
    position: int | None = None
    gap: float | None = None
    top2_gap: float | None = None
    threshold: float | None = None
    tie: bool | None = None
    tokens: tuple[int, int] | None = None
    noise: float | None = None

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
    position = parting(expected, got)
    if isinstance(position, Check):
        return position
    text = [*prompt, *expected[:position]]
    scores, logits = _scores(target, text, position > 0, sampling)
    noise = difference(logits, _in_a_tree(target, text))
    return judge(
        position, (expected[position], got[position]), scores, logits, noise, target.model.dtype,
        sampling, target.block_rows > 0,
    )  # fmt: skip


def parting(expected: Sequence[int], got: Sequence[int]) -> int | Check:
    """Where two texts first differ, or what there is to say where no token does."""
    if list(expected) == list(got):
        return Check(True, equal=True)
    position = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
    if position is None:  # one ended earlier though all its tokens are the other's: never a matter of rounding
        return Check(True, equal=False, position=min(len(expected), len(got)), tie=False)
    return position


def judge(
    position: int,
    tokens: tuple[int, int],
    scores: Tensor,
    logits: Tensor,
    noise: float,
    dtype: torch.dtype,
    sampling: SamplingParams = GREEDY,
    exact: bool = False,
) -> Check:
    """What to say of two texts that differ.

    Args:
        position: of the first new token that differs.
        tokens: both there.
        scores, logits: `[V]` float32, what the baseline chose by, and the logits those were made from.
        noise: see Check.
        dtype: of the model.
        sampling: of both.
        exact: the target does not round.
    """
    ours, theirs = tokens
    best = scores.topk(2).values
    gap = abs(float(scores[ours] - scores[theirs]))
    threshold = tie_threshold(max(float(logits.max()), abs(float(logits[ours])), abs(float(logits[theirs]))), dtype)
    rounding = not exact and noise <= NOISE_TIES * threshold
    penalty = sampling.repetition_penalty  # multiplies negative logits, and divides positive ones, with their rounding
    threshold *= max(penalty, 1 / penalty) / (sampling.temperature or 1.0)
    top2 = float(best[0] - best[1])
    return Check(True, False, position, gap, top2, threshold, rounding and gap <= threshold, tokens, noise)


def difference(some: Tensor, others: Tensor) -> float:
    """The largest of two rows of logits, infinities that both have left out."""
    return float(torch.where(some == others, 0.0, some.float() - others.float()).abs().max())


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


@torch.inference_mode()
def _in_a_tree(target: Target, text: list[int]) -> Tensor:
    """The logits `[V]` float32 after `text`, whose last tokens are nodes of a tree, each with a sibling before it."""
    committed, path = text[:-TREE_DEPTH], text[-TREE_DEPTH:]
    tokens, parents, last = [path[0]], [-1], 0
    for token in path[1:]:
        tokens += [(token + 1) % target.vocab_size, token]
        parents += [last, last]
        last = len(tokens) - 1
    target.open(1, len(text) + 1, len(tokens))
    if committed:
        target.prefill([0], [committed])
    logits = target.verify(TokenTree.from_lists([(tokens, parents)], target.device)).logits[0, last].float()
    target.release(0)
    return logits
