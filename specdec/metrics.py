"""What is counted while decoding, and every ratio made from it, each defined once.

Counts are kept; ratios are divided once, at the end, so that runs can be added up. A step is one verify pass over one
sequence. Every step emits the accepted draft tokens and one token of the target's own (the bonus): both are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from specdec.request_stats import RequestStats, ratio

STEP_PHASES = ("draft", "verify", "accept", "commit")
DECODING_PHASES = (*STEP_PHASES, "host")  # host: the rest
PHASES = ("prefill", *DECODING_PHASES)
UNDIVIDED = "undivided"  # what follows the prefill, of another engine that does not tell its phases


@dataclass(slots=True)
class DecodingStats:
    """All requests of a call, and where the time went.

    Attributes:
        requests: one entry per request, in the order given.
        phases: seconds per phase: prefill (buffers are made in it, too), draft (propose and observe), verify, accept,
            commit, host (the rest).
        forwards: verify passes of the whole batch.
    """

    requests: list[RequestStats] = field(default_factory=list, repr=False)
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    forwards: int = 0

    def _sum(self, name: str) -> int:
        return sum(getattr(r, name) for r in self.requests)

    @property
    def steps(self) -> int:
        """Sum of the requests' steps."""
        return self._sum("steps")

    @property
    def new_tokens(self) -> int:
        """Sum of the requests' new tokens."""
        return self._sum("new_tokens")

    @property
    def accept_lengths(self) -> list[list[int]]:
        """Emitted tokens of every step, per request."""
        return [r.accept_lengths for r in self.requests]

    @property
    def mean_accepted_length_pooled(self) -> float:
        """Sum of emitted tokens / sum of steps, bonus included."""
        return ratio(sum(sum(r.accept_lengths) for r in self.requests), self.steps)

    @property
    def mean_accepted_length_per_request(self) -> float:
        """Mean over requests of their own mean accepted length."""
        means = [r.mean_accepted_length for r in self.requests if r.steps]
        return ratio(sum(means), len(means))

    @property
    def block_efficiency(self) -> float:
        """Tokens per target forward of a request: (emitted tokens + the prefill's) / (steps + 1 prefill)."""
        started = sum(r.first_tokens > 0 and r.first > 0 for r in self.requests)
        return ratio(self.new_tokens, self.steps + started)

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted draft tokens / draft tokens proposed along the depth (a tree proposes its height)."""
        return ratio(self._sum("accepted"), self._sum("proposed_depth"))

    @property
    def node_acceptance_rate(self) -> float:
        """Accepted draft tokens / proposed draft nodes."""
        return ratio(self._sum("accepted"), self._sum("nodes"))

    @property
    def acceptance_by_depth(self) -> dict[str, list[float]]:
        """For depth 1, 2, ...: `conditional`, accepted given that the walk stood one level above at a node with
        children; `unconditional`, accepted in a step at all."""
        offered = _add(r.offered_by_depth for r in self.requests)
        accepted = _add(r.accepted_by_depth for r in self.requests)
        accepted += [0] * (len(offered) - len(accepted))
        return {
            "conditional": [ratio(a, o) for a, o in zip(accepted, offered, strict=True)],
            "unconditional": [ratio(a, self.steps) for a in accepted],
        }

    @property
    def decode_seconds(self) -> float:
        """Seconds of all phases but the prefill."""
        return sum(s for phase, s in self.phases.items() if phase != "prefill")

    @property
    def ttft(self) -> dict[str, float]:
        """Seconds from a request's entering to its first token: 20th, 50th, 80th and 99th percentile over requests."""
        return quantiles([r.ttft for r in self.requests if r.first])

    @property
    def tpot(self) -> dict[str, float]:
        """Seconds per output token after the first: the 20th, 50th, 80th and 99th percentile over requests."""
        return quantiles([r.tpot for r in self.requests if r.new_tokens > 1])

    @property
    def tokens_per_second(self) -> float:
        """New tokens / seconds of all phases, the prefill included."""
        return ratio(self.new_tokens, sum(self.phases.values()))

    @property
    def phase_share(self) -> dict[str, float]:
        """Each decoding phase's share of `decode_seconds`; no number where an engine does not tell them apart."""
        whole = float("nan") if UNDIVIDED in self.phases else self.decode_seconds
        return {p: ratio(self.phases.get(p, 0.0), whole) for p in DECODING_PHASES}

    @property
    def prefill_share(self) -> float:
        """The prefill's share of the seconds of all phases."""
        return ratio(self.phases["prefill"], sum(self.phases.values()))

    def summary(self) -> dict[str, object]:
        """Every metric by its name, for trackers and reports."""
        names = (
            "steps new_tokens mean_accepted_length_pooled mean_accepted_length_per_request block_efficiency "
            "draft_acceptance_rate node_acceptance_rate acceptance_by_depth ttft tpot tokens_per_second phase_share "
            "prefill_share"
        )
        return {name: getattr(self, name) for name in names.split()}

    @staticmethod
    def merge(parts: Iterable[DecodingStats]) -> DecodingStats:
        """Counts and times of several calls added up."""
        total = DecodingStats()
        for part in parts:
            total.requests += part.requests
            total.forwards += part.forwards
            for phase, seconds in part.phases.items():
                total.phases[phase] = total.phases.get(phase, 0.0) + seconds
        return total


@dataclass(frozen=True, slots=True)
class TargetCost:
    """What the target costs, whoever drafts.

    Attributes:
        parameters: weights that every row is multiplied with: all, the LM head included and the embedding's lookup not.
        weight_bytes: what these take in memory.
        kv_bytes_per_token: keys and values of one position in all layers.
    """

    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int

    def bytes_moved(self, stats: DecodingStats) -> int:
        """Bytes the target's verify passes have to read at least: the weights once per pass, and the keys and values of
        each sequence's text so far. Activations, the drafter and the prefill are not counted."""
        context = 0
        for request in stats.requests:
            length = request.prompt_tokens
            for emitted in request.accept_lengths:
                context += length
                length += emitted
        return stats.forwards * self.weight_bytes + context * self.kv_bytes_per_token

    def mbu(self, stats: DecodingStats, peak_bandwidth: float) -> float:
        """Memory bandwidth utilisation: `bytes_moved` / seconds of all phases but the prefill / the bandwidth of a
        large copy on this device, measured. Above 1 is possible where the weights stay in a cache."""
        return ratio(self.bytes_moved(stats), stats.decode_seconds * peak_bandwidth)

    def model_flops(self, stats: DecodingStats) -> int:
        """Floating-point operations of the target: 2 x its weights x rows, where rows are the prompts' tokens, every
        node of every tree, roots included, and its riders. Attention scores are not counted."""
        rows = sum(r.prompt_tokens + r.nodes + r.steps + r.riders for r in stats.requests)
        return 2 * self.parameters * rows


class Speedup(NamedTuple):
    """A ratio and its confidence interval."""

    ratio: float
    low: float
    high: float


def speedup(
    method: Sequence[tuple[int, float]],
    baseline: Sequence[tuple[int, float]],
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Speedup:
    """Tokens per second of the method / tokens per second of the baseline, each the sum of new tokens / the sum of
    seconds over the same prompts; with a 95 % interval over prompts: the ratio times and over exp(the bootstrap's
    standard error of its logarithm x Student's t), wide where prompts are few (NaN for a single one).

    Args:
        method, baseline: per prompt (all its turns and repeats), new tokens and seconds, in the same order.
        samples: bootstrap resamples.
        confidence: of the interval.
        seed: of the resampling.
    """
    pairs = np.array([(*m, *b) for m, b in zip(method, baseline, strict=True)], dtype=np.float64)  # [P, 4]
    if not len(pairs):
        return Speedup(*[float("nan")] * 3)
    if len(pairs) == 1:  # nothing to resample
        return Speedup(float(pairs[0, 0] / pairs[0, 1] / (pairs[0, 2] / pairs[0, 3])), float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).integers(0, len(pairs), (samples, len(pairs)))  # [S, P]
    sums = np.concatenate([pairs.sum(0)[None], pairs[drawn].sum(1)])  # [1 + S, 4]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[:, 0] / sums[:, 1] / (sums[:, 2] / sums[:, 3])
        error = np.log(ratios[1:]).std() * math.sqrt(len(pairs) / (len(pairs) - 1))  # resamples vary too little by that
    factor = float(np.exp(students_t(len(pairs) - 1, confidence) * error))
    return Speedup(float(ratios[0]), float(ratios[0]) / factor, float(ratios[0]) * factor)


def students_t(degrees: int, confidence: float) -> float:
    """How many standard errors around a mean hold the truth so often, with so many `degrees` of freedom."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 20_001)  # t = sqrt(degrees) tan(angle)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(np.interp((1 + confidence) / 2 * below[-1], below, angles))


def divergence_rate(different: int, compared: int) -> float:
    """Texts that differ from the baseline's in any token, numeric ties included / texts compared."""
    return ratio(different, compared)


def peak_memory(requests: Iterable[int]) -> int:
    """The most bytes in use while a request of this method was served: allocated by torch on a GPU, else the process's
    resident memory (weights of all methods included)."""
    return max(requests, default=0)


def definitions() -> dict[str, str]:
    """Every metric's name and what it means: the docstring of what computes it, in one line."""
    sources = {name: getattr(DecodingStats, name) for name in DecodingStats().summary()}
    sources |= {name: getattr(TargetCost, name) for name in ("bytes_moved", "mbu", "model_flops")}
    sources |= {f.__name__: f for f in (speedup, divergence_rate, peak_memory)}
    return {name: " ".join((source.__doc__ or "").split("Args:")[0].split()) for name, source in sources.items()}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th, 80th and 99th percentile, linearly interpolated; NaN of nothing."""
    shares = {"p20": 0.2, "p50": 0.5, "p80": 0.8, "p99": 0.99}
    found = np.quantile(values, list(shares.values())) if values else [float("nan")] * len(shares)
    return {name: float(value) for name, value in zip(shares, found, strict=True)}


def _add(rows: Iterable[Sequence[int]]) -> list[int]:
    total: list[int] = []
    for row in rows:
        total.extend([0] * (len(row) - len(total)))
        for i, count in enumerate(row):
            total[i] += count
    return total
