"""Did a run come out as an earlier one did? Texts and accepted lengths must be equal; times can only agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from specdec.experiments.records import Key, Row, key_of
from specdec.experiments.report.run_files import RunFiles
from specdec.experiments.run_folder import differences, told

FACTS = ("git", "versions", "system", "cpu", "gpu", "threads", "data")
SHOWN = 3  # places of each kind in the terminal; reproduction.json has all

Found = dict[str, Any]


def compare(before: RunFiles, now: RunFiles) -> Found:
    """What reproduction.json holds, see experiments/README.md."""
    old, new = ({key_of(row): row for row in run.requests} for run in (before, now))
    both = [key for key in old if key in new]
    texts, lengths = (
        [place for key in both if (place := _parts(old[key], new[key], name))]
        for name in ("token_ids", "accept_lengths")
    )
    one_sided = [_named(key) | {"only_in": "from"} for key in old if key not in new]
    one_sided += [_named(key) | {"only_in": "now"} for key in new if key not in old]
    whole = before.summary["complete"] and now.summary["complete"]  # else a time limit left some out
    return {
        "reproduced": bool(both) and not (texts or lengths or (one_sided and whole)),
        "went_on": any(run.provenance.get("earlier") for run in (before, now)),
        "requests": len(both),
        "one_sided": one_sided,
        "different_texts": texts,
        "different_accept_lengths": lengths,
        "speedups": list(_speedups(before.methods, now.methods)),
        "provenance": origins(before, now),
    }


def _named(key: Key) -> Found:
    return dict(zip(("method", "question_id", "turn", "repeat"), key, strict=True))


def _parts(old: Row, new: Row, name: str) -> Found | None:
    """Where two lists first differ; None if nowhere."""
    pairs = enumerate(zip_longest(old[name], new[name]))
    place = next(((number, a, b) for number, (a, b) in pairs if a != b), None)
    if place is None:
        return None
    return _named(key_of(old)) | dict(zip(("position", "from", "now"), place, strict=True))


def _speedups(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
    """Those that both runs have. They agree if each lies in the other's interval; null where there is none."""
    entries = {entry["name"]: entry for entry in new}
    for entry in old:
        other = entries.get(entry["name"], {"speedup": None, "by_category": {}})
        pairs: list[tuple[str | None, Any, Any]] = [(None, entry["speedup"], other["speedup"])]
        for category, part in entry["by_category"].items():
            pairs.append((category, part["speedup"], other["by_category"].get(category, {}).get("speedup")))
        for category, was, is_ in pairs:
            if was and is_ and None not in (was["ratio"], is_["ratio"]):
                found = {side: {k: s[k] for k in ("ratio", "low", "high")} for side, s in (("from", was), ("now", is_))}
                yield {"method": entry["name"], "category": category, **found, "agree": _agree(was, is_)}


def _agree(was: Mapping[str, Any], is_: Mapping[str, Any]) -> bool | None:
    if was["low"] is None or is_["low"] is None:
        return None
    return bool(was["low"] <= is_["ratio"] <= was["high"] and is_["low"] <= was["ratio"] <= is_["high"])


def origins(before: RunFiles, now: RunFiles) -> list[str]:
    """What differs of where two runs come from, as `name: before -> now`."""
    facts: list[Found] = []
    for run in (before, now):
        starts = len(run.provenance.get("earlier") or []) + 1
        known = {name: run.provenance.get(name) for name in FACTS}
        facts.append({**known, "target": run.summary["target"], "starts": starts})
    found = differences(facts[0], facts[1])
    states = [fact["git"] or {} for fact in facts]
    if all(state.get("dirty") and not state.get("diff_sha256") for state in states):
        found.append("git: both had uncommitted changes, which may differ")
    return found


def sentences(found: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    count, texts, lengths = found["requests"], found["different_texts"], found["different_accept_lengths"]
    timed = [pair for pair in found["speedups"] if pair["agree"] is not None]
    apart = [pair for pair in timed if not pair["agree"]]
    lines = [
        f"{'Reproduced' if found['reproduced'] else 'NOT reproduced'}: {found['from']}",
        f"texts: {count - len(texts)} of {count} equal{_places(texts, 'new token')}",
        f"accepted lengths: {count - len(lengths)} of {count} equal{_places(lengths, 'step')}",
    ]
    if lengths and found["went_on"]:
        lines.append(
            "one of the runs was stopped and went on: drafters that learn from earlier requests began anew there"
        )
    if found["one_sided"]:
        where = [f"{_request(place)} only in {place['only_in']}" for place in found["one_sided"]]
        lines.append(f"requests of one run only: {told(where, SHOWN)}")
    if found["speedups"]:
        words = [f"{_speedup(pair)} {pair['from']['ratio']:.2f} -> {pair['now']['ratio']:.2f}" for pair in apart]
        parts = [f"{len(timed) - len(apart)} of {len(timed)} agree"] if timed else []
        parts += [f"not: {told(words, SHOWN)}"] if words else []
        if alone := len(found["speedups"]) - len(timed):
            parts.append(f"{alone} cell{'s' * (alone > 1)} had one prompt and no interval")
        lines.append(f"speed-ups: {'; '.join(parts)}")
    return [*lines, f"commit, versions, machine: {told(found['provenance'], 2 * SHOWN) or 'the same'}"]


def _places(places: Sequence[Mapping[str, Any]], what: str) -> str:
    return _colon([f"{_request(p)} at {what} {p['position']} ({p['from']} -> {p['now']})" for p in places])


def _colon(words: Sequence[str]) -> str:
    return f": {told(words, SHOWN)}" if words else ""


def _request(place: Mapping[str, Any]) -> str:
    return f"{place['method']} question {place['question_id']} turn {place['turn']} repeat {place['repeat']}"


def _speedup(pair: Mapping[str, Any]) -> str:
    return pair["method"] + (f" in {pair['category']}" if pair["category"] else "")
