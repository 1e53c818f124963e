"""Goodness-of-fit tests that say how often they are wrong: every function returns a probability of chance alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Probability that a chi-square variable with `degrees` of freedom is at least `statistic`."""
    as_tensor = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(as_tensor[0], as_tensor[1]))


def chi_square(counts: Tensor, probs: Tensor, least: float = 10.0) -> float:
    """Pearson's test of `counts` against `probs` (same shape), rare cells pooled."""
    observed, expected = _pooled(counts, probs, least)
    return chi_square_tail(float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1)


def g_test(counts: Tensor, probs: Tensor, least: float = 10.0) -> float:
    """The likelihood-ratio test of `counts` against `probs`, rare cells pooled; 0 if something impossible happened."""
    if counts[probs <= 0].sum() > 0:
        return 0.0
    observed, expected = _pooled(counts, probs, least)
    terms = torch.where(observed > 0, observed * (observed / expected).clamp_min(1e-300).log(), 0.0)
    return chi_square_tail(float(2 * terms.sum()), len(expected) - 1)


def _pooled(counts: Tensor, probs: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Observed and expected numbers; cells that expect fewer than `least` go together into one."""
    observed = counts.double().flatten()
    expected = probs.double().flatten() * observed.sum()
    order = expected.argsort(descending=True)
    observed, expected = observed[order], expected[order]
    alone = int((expected >= least).sum())
    while alone > 1 and 0 < float(expected[alone:].sum()) < least:
        alone -= 1
    pools = [alone] if alone < len(expected) and float(expected[alone:].sum()) > 0 else []
    observed = torch.cat([observed[:alone], *(observed[i:].sum()[None] for i in pools)])
    expected = torch.cat([expected[:alone], *(expected[i:].sum()[None] for i in pools)])
    assert len(expected) > 1, "nothing to compare: all cells were pooled"
    return observed, expected


def kolmogorov_smirnov(sample: Tensor) -> float:
    """Probability of a distance from the uniform distribution on (0, 1) at least as large as `sample`'s."""
    ordered = sample.double().flatten().sort().values
    count = len(ordered)
    steps = torch.arange(count, dtype=torch.float64) / count
    distance = float(torch.maximum(ordered - steps, steps + 1 / count - ordered).max())
    scaled = (math.sqrt(count) + 0.12 + 0.11 / math.sqrt(count)) * distance
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101)))


def correlation_tail(x: Tensor, y: Tensor) -> float:
    """Probability that independent numbers correlate at least as much as `x` and `y` do (two-sided, large samples)."""
    z = float(torch.corrcoef(torch.stack([x.double().flatten(), y.double().flatten()]))[0, 1]) * math.sqrt(x.numel())
    return math.erfc(abs(z) / math.sqrt(2))
