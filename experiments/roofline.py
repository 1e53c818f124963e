"""What a step of a method moves and computes, and which share of the machine that is: the roofline.

Of the target, for a verify step, which is one forward over the trees of all sequences that are served together:

    bytes = weights + sum over sequences of context * KV bytes per token
    FLOP  = sum over sequences of rows * (2 * parameters + context * attention FLOP)

rows are a tree's nodes, its root included, and its riders; context is the sequence's text before the step; attention
FLOP, per row and token of context, are 2 * query heads * (key width + value width), summed over layers. Weights are all
that rows are multiplied with (`metrics.TargetCost`), each read once per step; keys and values of the text are read
once. A sequence's rows are taken to be the same in all its steps, their mean. Left out: activations, what the nodes
write and read of each other's KV, and the prefill. Of a mixture of experts all weights are counted, and of a sliding
window the whole text: both are then upper bounds.

Of a drafter, for a draft step (propose and observe), which drafts for all sequences:

    bytes = weights as read: a matrix counts each time a product reads it (`weight_reads`)
    FLOP  = sum over sequences of 2 * rows * weights of these products

its own KV and lookups apart. Then

    intensity       = FLOP / bytes
    bandwidth_share = bytes / seconds / the machine's bytes per second
    flops_share     = FLOP / seconds / the machine's FLOP per second, in the target's dtype

with the seconds of that phase. Williams et al., Roofline, Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.engine import Engine
from specdec.experiments.weight_reads import Reads
from specdec.metrics import DecodingStats, TargetCost
from specdec.request_stats import RequestStats, ratio

PARTS = {
    "verify_step": (
        "Of a verify step, on average: bytes (weights once, keys and values of the texts once), flops (2 x weights x "
        "rows, and attention over the texts), seconds, intensity (flops / bytes), and the shares of the machine's "
        "measured bandwidth and FLOP/s that were reached. See experiments/roofline.py."
    ),
    "draft_step": (
        "The same of a draft step, for drafters with weights: bytes of every weight as often as a product reads it, "
        "counted in a short text."
    ),
}


@dataclass(frozen=True, slots=True)
class Roofline:
    """A target on a machine.

    Attributes:
        cost: the target's weights and KV.
        attention_flops: see `attention_flops`.
        bandwidth, flops: bytes and floating-point operations per second that the machine gives.
        drafts: by method, what its drafter reads; of those with weights only.
    """

    cost: TargetCost
    attention_flops: int
    bandwidth: float
    flops: float
    drafts: Mapping[str, Reads] = field(default_factory=dict)

    def steps(self, method: str, stats: DecodingStats) -> dict[str, dict[str, float] | None]:
        """`verify_step` and `draft_step` of summary.json; the latter None for a drafter without weights."""
        verify = self._step(self.cost.bytes_moved(stats), self.verify_flops(stats), stats, "verify")
        reads = self.drafts.get(method)
        if reads is None:
            return {"verify_step": verify, "draft_step": None}
        draft = self._step(reads.bytes * stats.forwards, reads.flops * stats.steps, stats, "draft")
        return {"verify_step": verify, "draft_step": draft}

    def verify_flops(self, stats: DecodingStats) -> float:
        """Of all verify steps."""
        return sum(
            rows_of(request) * (2 * self.cost.parameters + context * self.attention_flops)
            for request in stats.requests
            for context in contexts(request)
        )

    def _step(self, moved: float, flops: float, stats: DecodingStats, phase: str) -> dict[str, float]:
        seconds = stats.phases[phase]
        return {
            "bytes": ratio(moved, stats.forwards),
            "flops": ratio(flops, stats.forwards),
            "seconds": ratio(seconds, stats.forwards),
            "intensity": ratio(flops, moved),
            "bandwidth_share": ratio(moved, seconds * self.bandwidth),
            "flops_share": ratio(flops, seconds * self.flops),
        }


def rows_of(request: RequestStats) -> float:
    """Rows of the target's forward in a step, on average."""
    return ratio(request.nodes + request.steps + request.riders, request.steps)


def contexts(request: RequestStats) -> Sequence[int]:
    """Tokens of the text before every step; its last one is the root of the tree, and not among them."""
    found, length = [], request.prompt_tokens
    for emitted in request.accept_lengths:
        found.append(length)
        length += emitted
    return found


def attention_flops(engine: Engine) -> int:
    """Per row and token of its text, all layers: scores and the mix of values, 2 operations a number each."""
    cache = engine.target.cache
    heads = engine.target.model.config.get_text_config().num_attention_heads
    return sum(2 * heads * (k.shape[3] + v.shape[3]) for k, v in zip(cache.keys, cache.values, strict=True))


def shown(metrics: Mapping[str, Any], part: str, key: str) -> float | None:
    """A number of `verify_step` or `draft_step`; None where there is none."""
    found: float | None = (metrics.get(part) or {}).get(key)
    return found
