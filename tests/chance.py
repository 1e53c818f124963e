"""Goodness-of-fit tests that say how often they are wrong: every function returns a probability of chance alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

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


def uniform_in_groups(groups: Tensor, cells: Tensor, count: int, least: float = 10.0) -> float:
    """The likelihood-ratio test that `cells` `[M]` are uniform over `0 ... count - 1` in each of `groups` `[M]`.

    Groups in which a cell expects fewer than `least` go together. What a cell's group is may depend on cells before it,
    as in the windows of a sequence: what is tested is each cell after its own history. With Williams' correction, by
    which the statistic has the mean that it should have.
    """
    table = (groups * count + cells).bincount(minlength=(int(groups.max()) + 1) * count).view(-1, count).double()
    table = table[table.sum(1).argsort(descending=True)]
    alone = int((table.sum(1) >= least * count).sum())
    while alone > 0 and 0 < float(table[alone:].sum()) < least * count:
        alone -= 1
    together = table[alone:].sum(0, keepdim=True)
    table = torch.cat([table[:alone], together[together.sum(1) > 0]])  # [groups, count]
    sizes = table.sum(1, keepdim=True)
    terms = 2 * torch.special.xlogy(table, table * count / sizes) / (1 + (count + 1) / (6 * sizes))
    statistic = terms.sum()
    return chi_square_tail(float(statistic), len(table) * (count - 1))


def groups_tail(limit: float, groups: int, size: int, count: int, step: float = 5e-3) -> float:
    """Probability that the statistic of `uniform_in_groups` is at least `limit`, without the chi-square distribution:
    `groups` of `size` each, every way to fill `count` cells counted. From above: a group's part is rounded up to whole
    steps; the sum's distribution is a power of its Fourier transform."""
    values, weights = [], []
    for filled in partitions(size, count, size):
        ways = math.factorial(count) / math.prod(math.factorial(filled.count(x)) for x in set(filled))
        weights.append(ways * math.exp(math.lgamma(size + 1) - sum(math.lgamma(x + 1) for x in filled)) / count**size)
        statistic = 2 * sum(x * math.log(x * count / size) for x in filled if x)
        values.append(statistic / (1 + (count + 1) / (6 * size)))
    places = (torch.tensor(values, dtype=torch.float64) / step).ceil().long()
    one = torch.zeros(int(places.max()) + 1, dtype=torch.float64)
    one.index_add_(0, places, torch.tensor(weights, dtype=torch.float64))
    length = groups * (len(one) - 1) + 1
    padded = 1 << (length - 1).bit_length()
    total = torch.fft.irfft(torch.fft.rfft(one, padded) ** groups, padded)[:length]
    return float(total[int(limit / step) :].sum())


def partitions(total: int, parts: int, most: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as `parts` numbers from 0 to `most`, the greatest first."""
    if parts == 1:
        yield (total,)
        return
    for first in range(min(total, most), -(-total // parts) - 1, -1):
        for rest in partitions(total - first, parts - 1, first):
            yield (first, *rest)


def chi_square_limit(probability: float, degrees: int) -> float:
    """What a chi-square variable exceeds with `probability`."""
    low, high = 0.0, 1e5
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if chi_square_tail(middle, degrees) > probability else (low, middle)
    return high


def noncentral_tail(limit: float, degrees: int, shift: float) -> float:
    """Probability that a noncentral chi-square variable is at least `limit`; `shift` is its noncentrality."""
    half, widest = shift / 2, int(shift / 2 + 20 * math.sqrt(shift / 2 + 1)) + 20
    more = torch.arange(widest, dtype=torch.float64)  # a Poisson number of further pairs of squares
    weights = (more * math.log(half) - half - torch.lgamma(more + 1)).exp() if half else (more == 0).double()
    tails = torch.special.gammaincc(degrees / 2 + more, torch.full_like(more, limit / 2))
    return float((weights * tails).sum())
