"""Texts of any length against the target's distribution: every token is told by a number that is uniform if it was
drawn as it should be.

The target's distribution at every place of a finished text comes from one plain forward over it and plain arithmetic.
The tokens' probabilities, laid one behind the other, fill (0, 1); a token becomes a random number from its own part
(Rosenblatt 1952; randomised for discrete draws as by Brockwell 2007). If each token was drawn from its distribution
given all before it, these numbers are independent and uniform, whatever the settings, the text so far, and the texts
beside it; so places of all kinds may be counted together, and the joint distribution of neighbouring tokens is that of
a cube. The parts lie in the order of their probability in one look, in the order of the tokens' ids in another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..chance import uniform_in_groups

BINS = 6  # of (0, 1)
LOOKS = 5  # of `agreement`
SLACK = 1e-5  # a token that float32 may find on either side of a cut is none that cannot come


@dataclass(frozen=True)
class Places:
    """All places of texts of one length.

    Attributes:
        tokens: `[n, P + L]` int64, prompts and texts.
        ranked, plain: `[n, L]` int64, bins of the texts' tokens, the likeliest first or by id.
        impossible: tokens that the target never writes there.
        vocab_size: V.
    """

    tokens: Tensor
    ranked: Tensor
    plain: Tensor
    impossible: int
    vocab_size: int

    @property
    def count(self) -> int:
        """How many."""
        return self.ranked.numel()

    def looks(self) -> list[tuple[Tensor, Tensor]]:
        """Bins alone, after one and two bins, after one and two tokens: what came before as a number, then bins."""
        return [*map(self.after_bins, (0, 1, 2)), *map(self.after_tokens, (1, 2))]

    def after_bins(self, length: int) -> tuple[Tensor, Tensor]:
        """Every bin after the `length` bins before it: those as one number, and the bin."""
        group = torch.zeros_like(self.ranked[:, length:])
        for back in range(length, 0, -1):
            group = group * BINS + self.ranked[:, length - back : self.ranked.shape[1] - back]
        return group.flatten(), self.ranked[:, length:].flatten()

    def after_tokens(self, length: int) -> tuple[Tensor, Tensor]:
        """The same after the `length` tokens before it, of the prompt too."""
        first = self.tokens.shape[1] - self.plain.shape[1]
        group = torch.zeros_like(self.plain)
        for back in range(length, 0, -1):
            group = group * self.vocab_size + self.tokens[:, first - back : self.tokens.shape[1] - back]
        return group.flatten(), self.plain.flatten()


def read(
    model: PreTrainedModel, tokens: Tensor, prompt: int, settings: Mapping[str, float], generator: torch.Generator
) -> Places:
    """`tokens` `[n, P + L]`, of which the first `prompt` are given; `generator` is for the places within a part."""
    with torch.inference_mode():
        logits = torch.cat([model(part).logits[:, prompt - 1 : -1].double() for part in tokens.split(512)])  # [n, L, V]
    seen = torch.nn.functional.one_hot(tokens, logits.shape[-1]).cumsum(1)[:, prompt - 1 : -1] > 0  # [n, L, V]
    new = tokens[:, prompt:, None]  # [n, L, 1]
    possible = processed(logits, seen, settings, SLACK).gather(2, new) > 0
    probs = processed(logits, seen, settings)
    own, place = probs.gather(2, new), torch.rand(new.shape, generator=generator, dtype=torch.float64)  # [n, L, 1]
    likeliest = probs.sort(descending=True, stable=True)
    rank = (likeliest.indices == new).int().argmax(2, keepdim=True)
    numbers = [
        ordered.cumsum(2).gather(2, index) - own * place for ordered, index in ((likeliest.values, rank), (probs, new))
    ]
    ranked, plain = ((x[..., 0] * BINS).long().clamp(0, BINS - 1) for x in numbers)
    return Places(tokens, ranked, plain, int((~possible).sum()), logits.shape[-1])


def processed(logits: Tensor, seen: Tensor, settings: Mapping[str, float], slack: float = 0.0) -> Tensor:
    """`[..., V]` probabilities, each setting in its simplest form.

    Args:
        logits: `[..., V]` float64.
        seen: `[..., V]` bool, tokens of the text so far.
        settings: as SamplingParams has them.
        slack: keep tokens that a cut leaves out by no more than this.
    """
    penalty = settings.get("repetition_penalty", 1.0)
    logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    probs = (logits / settings["temperature"]).softmax(-1)
    keep = torch.ones_like(probs, dtype=torch.bool)
    if "top_k" in settings:
        keep &= probs >= probs.topk(int(settings["top_k"])).values[..., -1:] - slack
    if "top_p" in settings:
        better = (probs[..., None, :] > probs[..., None]).double() @ probs[..., None]  # [..., V, 1]
        keep &= better[..., 0] < settings["top_p"] + slack
    if "min_p" in settings:
        keep &= probs >= settings["min_p"] * probs.amax(-1, keepdim=True) - slack
    kept = torch.where(keep, probs, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def agreement(parts: Sequence[Places]) -> float:
    """Probability of texts at least as far from the target's distribution by chance.

    G-tests of a token alone, after one and after two before it, which is the joint distribution of three, and by the
    ids of one and of two tokens before it; the least of their probabilities, five times (Bonferroni).
    """
    if any(part.impossible for part in parts):
        return 0.0
    found = [[torch.cat(x) for x in zip(*look, strict=True)] for look in zip(*(p.looks() for p in parts), strict=True)]
    return min(1.0, LOOKS * min(uniform_in_groups(groups, cells, BINS) for groups, cells in found))
