"""The result in a sentence or two, said no stronger than the run allows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from specdec.experiments.machine_noise import BEST_OF_MANY, is_again, percent
from specdec.experiments.report import text

Entry = Mapping[str, Any]


def ratio(entry: Entry) -> float | None:
    """The speed-up's ratio, if it has one."""
    found = entry["speedup"]
    return None if found is None else found.get("ratio")


def is_sound(entry: Entry) -> bool:
    """Whether its speed-up may stand without a word beside it."""
    return bool(entry["speedup"]) and not entry["speedup"].get("label")


def ranked(methods: Sequence[Entry]) -> list[Entry]:
    """The sound ones by speed-up, then those with a label, then what has no speed-up."""

    def key(entry: Entry) -> tuple[int, float]:
        value = ratio(entry)
        return (2 if value is None else 0 if is_sound(entry) else 1), -(value or 0.0)

    return sorted(methods, key=key)


def best(methods: Sequence[Entry]) -> Entry | None:
    """The fastest whose speed-up needs no word beside it."""
    return next((m for m in ranked(methods) if is_sound(m) and ratio(m) is not None), None)


def headline(methods: Sequence[Entry]) -> list[str]:
    """Sentences, the most important first."""
    if not methods:
        return ["No request was served."]
    winner = best(methods)
    labelled = [m for m in ranked(methods) if ratio(m) is not None and not is_sound(m) and not is_again(m)]
    sentences = []
    cells = {json.dumps({**m["cell"], "family": None}) for m in methods if m.get("cell") and m["baseline"]}
    if winner is not None and len(cells) > 1:
        sentences.append(f"The best of {len(cells)} cells, and {BEST_OF_MANY[:-1]}: {_winner(winner)}")
    elif winner is not None:
        sentences.append(_winner(winner))
    elif labelled:
        sentences.append("No method of this run is both measured and lossless.")
    else:
        sentences.append(_plain(methods))
    for entry in labelled:
        if winner is None or (ratio(entry) or 0) > (ratio(winner) or 0):
            sentences.append(f"{entry['name']} shows {text.times(ratio(entry))}, but {_reproach(entry)}.")
    return sentences


def _winner(entry: Entry) -> str:
    found = entry["speedup"]
    length = entry["metrics"].get("mean_accepted_length_pooled")
    low, high = found.get("low"), found.get("high")
    name, speed, plain = entry["name"], text.times(found["ratio"]), _baseline(entry)
    if found["ratio"] < 1:
        start = f"No method was shown to be faster than {plain} here: {name}, the best, reaches {speed} its speed"
    elif low is None:
        start = f"{name} decodes {speed} as fast as {plain} on a single prompt, which may be chance"
    elif low <= 1:
        start = f"{name} is the fastest at {speed} the speed of {plain}, which may be chance"
    elif found["ratio"] <= (found.get("noise") or 1):
        noise = percent(found["noise"])
        start = f"{name} is the fastest at {speed} the speed of {plain}, no more than this machine's noise ({noise})"
    else:
        start = f"{name} decodes {speed} as fast as {plain}"
    if low is not None and high is not None:
        start += f" (95 % interval {low:.2f} to {high:.2f})"
    return f"{start}, at {text.number(length)} tokens a step; {_soundness(entry['lossless'])}."


def _soundness(lossless: Mapping[str, Any]) -> str:
    verdict, compared = lossless["verdict"], lossless.get("compared") or 0
    if verdict == "yes":
        return f"all {compared} texts are equal to the baseline's" if compared > 1 else "its text is the baseline's"
    if verdict.startswith("yes"):
        ties = lossless.get("ties") or 0
        parting = "1 parts from it at a numeric tie" if ties == 1 else f"{ties} part from it at numeric ties"
        return f"{compared - ties} of {compared} texts are equal to the baseline's, {parting}"
    if verdict == "in distribution":
        return "its texts follow the target's distribution by proof and were not compared"
    return f"losslessness: {verdict}"


def _reproach(entry: Entry) -> str:
    words = text.lossless_words(entry["lossless"])
    if entry["speedup"]["label"] == "failed check":
        return f"failed its losslessness check: {words}"
    return f"is {entry['speedup']['label']}" + (f" ({words})" if words else "")


def _baseline(entry: Entry) -> str:
    words = text.sampling(entry["sampling"])
    return f"plain {words} decoding" if words == "greedy" else f"plain decoding{' at ' * bool(words)}{words}"


def _plain(methods: Sequence[Entry]) -> str:
    if len(methods) > 1:
        return f"{len(methods)} methods were measured and none was compared with a baseline."
    speed = methods[0]["metrics"].get("tokens_per_second")
    return f"{methods[0]['name']} writes {text.number(speed, 1)} tokens per second; nothing was compared with it."
