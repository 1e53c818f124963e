"""95 % intervals of ratios of counts that come in groups: the steps of a prompt resemble each other, so that there is
less in them than in as many of different prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959964  # of the normal distribution, for 95 %
Interval = tuple[float, float, float]  # ratio, low, high; NaN where there is nothing, or a single group


def share(groups: Sequence[tuple[int, int]]) -> Interval:
    """Accepted / offered: Wilson's interval for as many independent trials as these are worth.

    That is their number over the design effect (Kish, 1965): the variance of the ratio between groups over the one that
    independent trials would have, at least 1. Where all or none were accepted groups cannot be seen to differ, and
    every trial counts.

    Args:
        groups: of every prompt (accepted, offered).
    """
    groups = [(a, n) for a, n in groups if n]
    total = sum(n for _, n in groups)
    if not total:
        return (math.nan,) * 3
    p = sum(a for a, _ in groups) / total
    if len(groups) < 2:
        return p, math.nan, math.nan
    independent = p * (1 - p) / total
    effect = max(_variance(groups, p) / independent, 1.0) if independent else 1.0
    n, squared = total / effect, Z * Z
    middle = (p + squared / (2 * n)) / (1 + squared / n)
    reach = Z * math.sqrt(p * (1 - p) / n + squared / (4 * n * n)) / (1 + squared / n)
    return p, max(middle - reach, 0.0), min(middle + reach, 1.0)


def mean(groups: Sequence[tuple[float, int]]) -> Interval:
    """Sum / count, normal, by the variance between groups.

    Args:
        groups: of every prompt (sum, count).
    """
    groups = [(a, n) for a, n in groups if n]
    if not groups:
        return (math.nan,) * 3
    ratio = sum(a for a, _ in groups) / sum(n for _, n in groups)
    if len(groups) < 2:
        return ratio, math.nan, math.nan
    reach = Z * math.sqrt(_variance(groups, ratio))
    return ratio, ratio - reach, ratio + reach


def _variance(groups: Sequence[tuple[float, int]], ratio: float) -> float:
    """Of a ratio of sums over groups, linearised (Cochran, Sampling Techniques, 6.4)."""
    count, total = len(groups), sum(n for _, n in groups)
    return count / (count - 1) * sum((a - ratio * n) ** 2 for a, n in groups) / total**2
