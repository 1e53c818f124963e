"""Search for the best set of so many things out of many, by scores that cost something: which layers to leave out.

The first set is spread evenly. Then by turns: the best set so far with one member exchanged, with two, and the best set
under weights of the members that are drawn from what all scores so far say of them (Thompson sampling with a Bayesian
linear model: its exact best set is that of the largest weights). No set is scored twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Subset = tuple[int, ...]  # ascending
Score = Callable[[Subset], float]
Told = Callable[[int, Subset, float], None]  # sets scored, the best one, its score

NOISE = 0.1  # variance of a score around the sum of its members' weights, in variances of all scores
ATTEMPTS = 50  # to find a set that is new in one way, before a random one is taken


def search(score: Score, things: int, count: int, trials: int, seed: int, told: Told) -> dict[Subset, float]:
    """Sets of `count` of the numbers below `things`, with their scores, the best first.

    Args:
        score: of a set; larger is better.
        trials: most sets that are scored, of all there are.
        seed: the same one, the same sets.
        told: is called after every set.
    """
    chance = np.random.default_rng(seed)
    scores: dict[Subset, float] = {}
    best = spread(things, count)
    following = best
    for number in range(min(trials, math.comb(things, count))):
        scores[following] = score(following)
        best = following if scores[following] > scores[best] else best
        told(number + 1, best, scores[best])
        if number + 1 < math.comb(things, count):
            following = _new(number % 3, scores, best, things, chance)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def spread(things: int, count: int) -> Subset:
    """`count` numbers below `things`, evenly spread, the ends left out where that can be."""
    return tuple((2 * i + 1) * things // (2 * count) for i in range(count))


def _new(way: int, scores: dict[Subset, float], best: Subset, things: int, chance: np.random.Generator) -> Subset:
    """A set that has no score yet."""
    for _ in range(ATTEMPTS):
        made = _drawn(scores, things, chance) if way == 2 else _exchanged(best, way + 1, things, chance)
        if made not in scores:
            return made
    while True:
        made = _subset(chance.choice(things, len(best), replace=False))
        if made not in scores:
            return made


def _exchanged(best: Subset, number: int, things: int, chance: np.random.Generator) -> Subset:
    """`number` members, or as many as can be, exchanged for others."""
    others = [thing for thing in range(things) if thing not in best]
    number = min(number, len(best), len(others))
    gone = chance.choice(best, number, replace=False).tolist()
    return _subset([*(set(best) - set(gone)), *chance.choice(others, number, replace=False).tolist()])


def _drawn(scores: dict[Subset, float], things: int, chance: np.random.Generator) -> Subset:
    """The best set for weights drawn from their posterior."""
    rows = np.zeros((len(scores), things))  # [n, things]
    for row, members in zip(rows, scores, strict=True):
        row[list(members)] = 1
    values = np.array(list(scores.values()))  # [n]
    values = (values - values.mean()) / (values.std() or 1.0)
    precision = rows.T @ rows / NOISE + np.eye(things)
    mean = np.linalg.solve(precision, rows.T @ values / NOISE)
    weights = mean + np.linalg.solve(np.linalg.cholesky(precision).T, chance.standard_normal(things))
    count = len(next(iter(scores)))
    return _subset(np.argsort(-weights, kind="stable")[:count])


def _subset(members: object) -> Subset:
    return tuple(sorted(int(member) for member in np.asarray(members)))
