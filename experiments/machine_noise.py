"""What this machine cannot tell apart: plain decoding against itself, measured as a method is (`measure.noise`).

The second measurement of a question comes after all methods', so that no method lies further from the baseline than it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BEST_OF_MANY = "the best of many looks better than it is."
FAILED_CHECK = "failed check"  # the label of a method whose texts are not the baseline's
AGAIN = "plain again"  # the label of the second measurement's own ratio


def add_noise(entries: Sequence[Mapping[str, Any]]) -> None:
    """Write `noise` into every speed-up of summary.json's `methods`: that of the same questions.

    It is a factor of at least 1, or None where plain decoding was measured once.
    """
    again = {e["baseline"]: e for e in entries if is_again(e)}
    for entry in entries:
        other = again.get(entry["baseline"], {"speedup": None, "by_category": {}})
        pairs = [(entry, other), *((p, other["by_category"].get(c)) for c, p in entry["by_category"].items())]
        for part, same in pairs:
            if part["speedup"] is not None:
                part["speedup"]["noise"] = noise_of(same["speedup"] if same else None)


def noise_of(found: Mapping[str, Any] | None) -> float | None:
    """The most that the second measurement, with its 95 % interval, is away from the first: up or down, as a factor."""
    values = [found[key] for key in ("ratio", "low", "high") if found.get(key)] if found else []
    return max((max(value, 1 / value) for value in values), default=None)


def is_again(entry: Mapping[str, Any]) -> bool:
    """Whether a method of summary.json is plain decoding's second measurement."""
    return (entry["speedup"] or {}).get("label") == AGAIN


def is_faster(found: Mapping[str, Any] | None) -> bool:
    """Whether a speed-up may be shown as one: no word must stand beside it, its interval lies above 1, and it is larger
    than the machine's noise."""
    if found is None or found.get("label"):
        return False
    return (found.get("low") or 0) > 1 and found["ratio"] > (found.get("noise") or 1)


def is_unclear(found: Mapping[str, Any]) -> bool:
    """Whether neither a speed-up nor a slow-down was shown: chance over prompts or the machine's noise may make it."""
    ratio, noise = found["ratio"], found.get("noise") or 1
    chance = found.get("low") is None or found["low"] <= 1 <= found["high"]
    return ratio is not None and (chance or 1 / noise <= ratio <= noise)


def warning(found: Mapping[str, Any]) -> str:
    """The word that must stand beside a speed-up, or nothing: that of the second measurement is in `noise_words`."""
    label = found.get("label") or ""
    return "" if label == AGAIN else str(label)


def percent(noise: float | None) -> str:
    """As `±3.1 %`; from 1.5 on as `factor 2.98`."""
    if noise is None:
        return "-"
    return f"factor {noise:.2f}" if noise >= 1.5 else f"±{100 * (noise - 1):.{0 if noise >= 1.1 else 1}f} %"


def noise_words(found: Mapping[str, Any]) -> str:
    """What stands beside a speed-up: `noise ±3.1 %`, or that noise was not measured; where it is neither faster nor
    slower, `unclear: within noise (±3.1 %)` or `unclear: may be chance`. Of the second measurement, its noise.
    Nothing beside no number."""
    ratio, noise = found["ratio"], found.get("noise")
    if ratio is None:
        return ""
    if found.get("label") == AGAIN:
        return f"noise measurement: {percent(noise)}"
    if is_unclear(found):
        within = noise is not None and 1 / noise <= ratio <= noise
        return f"unclear: within noise ({percent(noise)})" if within else "unclear: may be chance"
    return "noise not measured" if noise is None else f"noise {percent(noise)}"
