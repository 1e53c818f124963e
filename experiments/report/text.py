"""Numbers and verdicts as a reader sees them. A value that does not exist is a dash, never a word or a zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DASH = "–"
# what to call a verdict, and how to mark it: good, bad, or neither
MARKS = {"yes": ("✓", "good"), "no": ("✗", "bad"), "not lossless": ("✗", "bad"), "in distribution": ("≈", "fair")}


def number(value: float | None, digits: int = 2) -> str:
    """With so many decimals."""
    return DASH if value is None else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def milliseconds(value: float | None) -> str:
    """Seconds as milliseconds, three digits."""
    if value is None:
        return DASH
    value *= 1000
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def large(value: float | None, unit: str = "") -> str:
    """With a decimal prefix: 13.9 M, 2.04 GB."""
    if value is None:
        return DASH
    prefixes = ["", "k", "M", "G", "T", "P"]
    while abs(float(f"{value:.3g}")) >= 1000 and len(prefixes) > 1:  # as it will be shown
        value, prefixes = value / 1000, prefixes[1:]
    return f"{value:.3g}\u00a0{prefixes[0]}{unit}".rstrip()  # never in two lines


def times(value: float | None) -> str:
    """A ratio: 1.36×."""
    return DASH if value is None else f"{value:.2f}×"


def interval(found: Mapping[str, Any]) -> str:
    """Of a speed-up: [1.28, 1.45]."""
    low, high = found.get("low"), found.get("high")
    return DASH if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def mark(verdict: str) -> tuple[str, str]:
    """A sign and a class for a verdict."""
    return MARKS.get(verdict.partition(" (")[0], ("", "plain"))


def lossless_words(lossless: Mapping[str, Any]) -> str:
    """What stands behind a verdict."""
    compared, different, ties = (lossless.get(key) or 0 for key in ("compared", "different", "ties"))
    verdict = lossless["verdict"]
    if verdict == "no":
        return f"{different - ties} of {compared} texts differ"
    if verdict.startswith("yes"):
        return f"{compared - different} of {compared} texts equal"
    return {"in distribution": "by proof, not compared", "not lossless": "by design"}.get(verdict, "")


def tie_or_bug(difference: Mapping[str, Any]) -> str:
    """What made two texts differ."""
    return "tie" if difference.get("tie") else "bug"


def short(spec: Any) -> str:
    """A drafter, tree or rule in a few words: its class and its own settings."""
    if spec is None:
        return ""
    if not isinstance(spec, Mapping):
        return str(spec)
    name = str(spec.get("_target_", "")).rpartition(".")[2]
    settings = [f"{k}={v}" for k, v in spec.items() if k != "_target_" and not isinstance(v, Mapping)]
    return f"{name}({', '.join(settings)})" if settings else name


def sampling(found: Mapping[str, Any]) -> str:
    """Sampling settings that say something."""
    temperature = found.get("temperature")
    if temperature is None:
        return ""
    if temperature == 0:
        return "greedy"
    idle = {"top_k": (0, None), "top_p": (1, 1.0, None), "min_p": (0, 0.0, None), "repetition_penalty": (1, 1.0, None)}
    rest = [f", {key} {found[key]}" for key, values in idle.items() if key in found and found[key] not in values]
    return f"temperature {temperature:g}" + "".join(rest)
