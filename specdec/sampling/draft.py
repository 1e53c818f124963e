"""What drafters draw with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec import noise

if TYPE_CHECKING:
    from specdec.sampling.step import StepSampling


class DraftNoise:
    """How a drafter chooses children. The same call serves every rule.

    Under a rule with shared noise, children are the tokens that the target would draw if its logits were the
    drafter's. Under any other, they are drawn from the drafter's distribution, which is returned.
    """

    def __init__(self, step: StepSampling, shared: bool):
        self._step = step
        self._sampler = step._sampler
        self.shared = shared

    @property
    def vocab_size(self) -> int:
        """V of the target: what `choose` expects."""
        return self._sampler.vocab_size

    @property
    def reads_paths(self) -> bool:
        """Whether `choose` looks at paths: a penalty does. Else any tensor will do."""
        return self._sampler.penalised

    def choose(
        self, logits: Tensor, depth: int, count: int, path: Tensor, fixed: bool = False, replacement: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Children of every node of a frontier.

        Args:
            logits: `[B, F, V]` of the drafter, on the device of the target's logits.
            depth: of the frontier; the root is 0.
            count: children for each, K.
            path: `[B, F, depth]` int64, drafted tokens from below the root to each node, -1 padded.
            fixed: the tree keeps children because of what they are: take the most likely, draw nothing.
            replacement: those that are drawn from the drafter's distribution are drawn with replacement. Under shared
                noise, where one child at most is the target's token, and at temperature 0 siblings always differ.

        Returns:
            tokens `[B, F, K]` int64, the best first, or in the order in which they were drawn; if `fixed`, their
            log-probabilities `[B, F, K]` float32, to rank them by, else None; the distribution they were drawn from
            `[B, F, V]`, None if they were not drawn.
        """
        scores = logits.float() if self._sampler.raw else self._sampler.process(logits, path)
        if self._sampler.all_greedy or (fixed and not self.shared):
            tokens = _top(scores, count)
            return tokens, _log_probs(scores, tokens) if fixed else None, None
        if self.shared:
            keys = self._step.keys(noise.TARGET_STREAM, depth)[..., None]  # [2, B, 1]
        elif replacement:
            return self._independent(scores, depth, count), None, self._step._distribution(scores)
        else:
            keys = self._step.draft_keys(depth, scores.shape[1])  # [2, B, F]
        drawn = noise.gumbel(keys, scores.shape[-1])  # [B, 1 or F, V]
        perturbed = torch.where(self._sampler.greedy[:, None, None], scores, scores + drawn)
        tokens = _top(perturbed, count)
        if self.shared:
            return tokens, _log_probs(perturbed, tokens) if fixed else None, None
        return tokens, None, self._step._distribution(scores)

    def _independent(self, scores: Tensor, depth: int, count: int) -> Tensor:
        """`[B, F, count]` draws from `scores` `[B, F, V]`, each with noise of its own; at temperature 0 the best."""
        frontier = scores.shape[1]
        drawn = noise.gumbel(self._step.draft_keys(depth, frontier * count), scores.shape[-1])  # [B, F * count, V]
        tokens = drawn.unflatten(1, (frontier, count)).add_(scores[:, :, None]).argmax(-1)
        return torch.where(self._sampler.greedy[:, None, None], _top(scores, count), tokens)


def _top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` best of `[..., V]`; a maximum costs a third of a selection."""
    return scores.max(-1, keepdim=True).indices if count == 1 else scores.topk(count, dim=-1).indices


def _log_probs(scores: Tensor, tokens: Tensor) -> Tensor:
    """Of `tokens` `[..., K]` under `scores` `[..., V]`; a logsumexp costs three times as much."""
    return scores.log_softmax(-1).gather(-1, tokens)
