"""Power laws through measured times: a pure one, and one above a fixed cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Json = dict[str, Any]
EXPONENTS = np.linspace(0.05, 3.0, 296)  # that are tried where there is a fixed cost
GOOD = 0.98  # share of the variance of log times from which on the pure law is told
FIXED_POINTS = 5  # from which on the law above a fixed cost, which has three parameters, may be told
RESAMPLES = 400


def power_law(x: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """Exponent and factor of `factor * x ** exponent`, by least squares of logarithms. `x`, `times` `[N]`, above 0."""
    exponent, intercept = np.polyfit(np.log(x), np.log(times), 1)
    return float(exponent), float(np.exp(intercept))


def above_fixed_cost(x: np.ndarray, times: np.ndarray) -> tuple[float, float, float]:
    """Exponent, factor and fixed cost of `fixed + factor * x ** exponent`, neither of the last two below 0: by least
    squares of relative errors, for every one of EXPONENTS in closed form."""
    powers = x[None] ** EXPONENTS[:, None]  # [E, N]
    ones, rest = 1 / times, powers / times  # what fixed and factor are multiplied with, and 1 is to come out
    a, b, d = (ones * ones).sum(), (ones * rest).sum(1), (rest * rest).sum(1)
    e, f = ones.sum(), rest.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        fixed, factor = (e * d - b * f) / (a * d - b * b), (a * f - b * e) / (a * d - b * b)
    fixed, factor = np.where(np.isfinite(fixed), fixed, 0.0), np.where(np.isfinite(factor), factor, 0.0)
    factor = np.where(fixed < 0, f / d, factor)  # without what would be below 0
    fixed = np.where(factor < 0, e / a, np.maximum(fixed, 0.0))
    factor = np.maximum(factor, 0.0)
    errors = ((fixed[:, None] * ones + factor[:, None] * rest - 1) ** 2).sum(1)
    best = int(errors.argmin())
    return float(EXPONENTS[best]), float(factor[best]), float(fixed[best])


def at_the_limit(law: Json) -> bool:
    """Whether an exponent above a fixed cost may be another than those that were tried: its interval ends with them."""
    return "fixed" in law and (law["low"] <= EXPONENTS[0] or law["high"] >= EXPONENTS[-1])


def fit(values: Sequence[float], samples: Sequence[Sequence[float]], seed: int = 0) -> Json:
    """Both laws through the medians.

    Args:
        values: `[N]`, at which it was timed, ascending, 3 at least.
        samples: `[N][R]`, seconds; sample r of all points is of round r.
        seed: of the bootstrap.

    Returns:
        `power` {exponent, low, high, factor, r2} and `fixed` {the same, fixed}: r2 of log times; low and high a 95 %
        bootstrap interval over rounds. `told`: "power" if its r2 is GOOD at least or no worse than the other's, or if
        there are fewer than FIXED_POINTS, else "fixed". `growth`: last median over the first; `end`: the exponent
        between the last two points.
    """
    x, taken = np.asarray(values, float), np.asarray(samples, float)  # [N], [N, R]
    middle = np.median(taken, 1)
    rounds = taken.shape[1]
    drawn = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, rounds))
    again = [np.median(taken[:, chosen], 1) for chosen in drawn]
    exponent, factor = power_law(x, middle)
    power = {"exponent": exponent, **_interval([power_law(x, t)[0] for t in again]), "factor": factor}
    power["r2"] = _r2(middle, factor * x**exponent)
    exponent, factor, cost = above_fixed_cost(x, middle)
    fixed = {"exponent": exponent, **_interval([above_fixed_cost(x, t)[0] for t in again]), "factor": factor}
    fixed |= {"fixed": cost, "r2": _r2(middle, cost + factor * x**exponent)}
    return {
        "power": power,
        "fixed": fixed,
        "told": "power" if power["r2"] >= min(GOOD, fixed["r2"]) or len(x) < FIXED_POINTS else "fixed",
        "growth": float(middle[-1] / middle[0]),
        "end": float(np.log(middle[-1] / middle[-2]) / np.log(x[-1] / x[-2])),
    }


def _interval(exponents: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(exponents, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _r2(times: np.ndarray, fitted: np.ndarray) -> float:
    """Of logarithms; 0 where there is nothing to explain."""
    logs = np.log(times)
    whole = float(((logs - logs.mean()) ** 2).sum())
    return 1 - float(((logs - np.log(fitted)) ** 2).sum()) / whole if whole else 0.0
