"""summary.json: everything the report shows, made from the rows of requests.jsonl alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specdec import metrics, registry
from specdec.core import AcceptanceRule
from specdec.experiments.acceptance_tables import acceptance_tables
from specdec.experiments.machine_noise import AGAIN, FAILED_CHECK, add_noise
from specdec.experiments.methods import Method
from specdec.experiments.records import Row
from specdec.experiments.roofline import Roofline
from specdec.metrics import DecodingStats, TargetCost
from specdec.request_stats import RequestStats

PARTED = "position tokens pieces gap top2_gap noise threshold tie".split()  # of a check
COUNTS = "prompt_tokens accept_lengths nodes proposed_depth accepted offered_by_depth accepted_by_depth".split()


def summarise(
    methods: Sequence[Method],
    rows: Sequence[Row],
    cost: TargetCost,
    peak_bandwidth: float,
    allow_targets: Sequence[str] = (),
    seed: int = 0,
    roofline: Roofline | None = None,
) -> list[dict[str, Any]]:
    """The `methods` of summary.json, in the order given; see experiments/README.md."""
    by_method = {m.name: [r for r in rows if r["method"] == m.name] for m in methods}
    entries = []
    for method in methods:
        held = None if method.backend is not None else roofline  # of other engines no step is known
        rule: AcceptanceRule = registry.build("acceptance", method.acceptance, allow_targets=allow_targets)
        own, base = by_method[method.name], by_method.get(method.baseline or "", [])
        checked = verdict(method, rule, own)
        entry: dict[str, Any] = {
            "name": method.name,
            "cell": None if method.place is None else method.place.about,
            "baseline": method.baseline,
            "drafter": method.drafter,
            "tree": method.tree,
            "acceptance": method.acceptance,
            "backend": None if method.backend is None else registry.yaml_name("backend", method.backend),
            "sampling": {f: getattr(method.sampling, f) for f in method.sampling.__dataclass_fields__},
            "batch": method.batch,
            "requests": len(own),
            "lossless": checked,
            "metrics": _metrics(own, cost, peak_bandwidth, method.name, held),
            "speedup": _speedup(method, own, base, checked["verdict"], seed),
            "accepted_by": acceptance_tables(own),
            "by_category": {},
        }
        for category in sorted({r["category"] for r in own}):
            part, other = ([r for r in some if r["category"] == category] for some in (own, base))
            alone = len(_by_group(part)) == len(_by_group(part, whole=False))
            untold = {} if alone else dict.fromkeys(("tokens_per_second", "mbu"))  # what others' steps are part of
            entry["by_category"][category] = {
                "requests": len(part),
                "metrics": _metrics(part, cost, peak_bandwidth, method.name, held) | untold,
                "speedup": _speedup(method, part, other, checked["verdict"], seed),
                "accepted_by": acceptance_tables(part, whole=False),
            }
        entries.append(entry)
    entries = [without_nan(entry) for entry in entries]
    add_noise(entries)
    return entries


def stats_of(rows: Sequence[Row]) -> DecodingStats:
    """Counts and times as they were when the rows were written."""
    stats = DecodingStats()
    stats.forwards = round(sum(row["forwards"] for row in rows))  # requests that were served together share them
    for row in rows:
        request = RequestStats(**{name: _told(row[name]) for name in COUNTS}, first=row["ttft"])
        request.first_tokens = row.get("first_tokens", 1)
        request.riders = row.get("riders", 0)  # runs of earlier versions have none
        request.end = request.first + row["tpot"] * max(request.new_tokens - 1, 1)
        stats.requests.append(request)
        for phase, seconds in row["phases"].items():
            stats.phases[phase] = stats.phases.get(phase, 0.0) + seconds
    return stats


def verdict(method: Method, rule: AcceptanceRule, rows: Sequence[Row]) -> dict[str, Any]:
    """Is the method lossless, as far as this run can tell?"""
    found = differences_of(rows)
    if method.baseline is None:
        word = "baseline"
    elif not rule.lossless:
        word = "not lossless"
    elif not found["compared"]:
        word = "in distribution"
    elif found["different"] > found["ties"]:
        word = "no"
    else:
        word = f"yes ({found['ties']} tie{'s' * (found['ties'] > 1)})" if found["ties"] else "yes"
    return {"verdict": word, "rule": str(method.acceptance["_target_"]).rpartition(".")[2].lower(), **found}


def differences_of(rows: Sequence[Row]) -> dict[str, Any]:
    """How many texts were compared, which differ, and where, bugs first.

    `per_thousand_tokens` is of tokens that were written on the same text: those up to the first difference.
    """
    checks = [(row, row["check"]) for row in rows if row["check"] and row["check"]["comparable"]]
    different = [(row, check) for row, check in checks if not check["equal"]]
    tokens = sum(row["new_tokens"] if check["equal"] else check["position"] + 1 for row, check in checks)
    return {
        "compared": len(checks),
        "different": len(different),
        "ties": sum(bool(check["tie"]) for _, check in different),
        "per_thousand_tokens": 1000 * len(different) / tokens if tokens else None,
        "differences": [
            {key: row[key] for key in ("question_id", "repeat", "turn")} | {key: check.get(key) for key in PARTED}
            for row, check in sorted(different, key=lambda pair: bool(pair[1]["tie"]))
        ],
    }


def parted(summary: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Who was compared, and what `differences_of` says of them: the methods, then transformers itself."""
    found = [(m["name"], m["lossless"]) for m in summary["methods"] if m["lossless"]["compared"]]
    theirs = summary.get("transformers")
    return found + ([(f"transformers, {theirs['batch']} at once", theirs)] if theirs else [])


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null says that there is no value."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def _metrics(
    rows: Sequence[Row], cost: TargetCost, peak_bandwidth: float, name: str, roofline: Roofline | None
) -> dict[str, Any]:
    stats = stats_of(rows)
    checks = [row["check"] for row in rows if row["check"] and row["check"]["comparable"]]
    return stats.summary() | {
        "bytes_moved": cost.bytes_moved(stats),
        "mbu": cost.mbu(stats, peak_bandwidth),
        "model_flops": cost.model_flops(stats),
        "peak_memory": _peak_memory(rows),
        "divergence_rate": metrics.divergence_rate(sum(not c["equal"] for c in checks), len(checks)),
        **(roofline.steps(name, stats) if roofline else {}),
    }


def _told(count: Any) -> Any:
    """What another engine does not tell is null in a file."""
    return math.nan if count is None else count


def _peak_memory(rows: Sequence[Row]) -> int | None:
    told = [row["peak_memory"] for row in rows if row["peak_memory"] is not None]
    return metrics.peak_memory(told) if told or not rows else None


def _speedup(
    method: Method, rows: Sequence[Row], baseline: Sequence[Row], word: str, seed: int
) -> dict[str, Any] | None:
    """Over the groups of questions that both have served whole; with the words that must stand beside it."""
    if method.baseline is None:
        return None
    ours, theirs = _by_group(rows), _by_group(baseline)
    both = [group for group in ours if group in theirs and ours[group].keys() == theirs[group].keys()]

    def totals(by_group: Mapping[Any, Mapping[Any, Row]]) -> list[tuple[int, float]]:
        cells = [by_group[group].values() for group in both]
        return [(sum(r["new_tokens"] for r in c), sum(r["seconds"] for r in c)) for c in cells]

    found = metrics.speedup(totals(ours), totals(theirs), seed=seed)
    label = AGAIN if method.is_again else "synthetic" if method.synthetic else ""
    label = {"no": FAILED_CHECK, "not lossless": "not lossless"}.get(word, label)
    return {**found._asdict(), "label": label}


def _by_group(rows: Sequence[Row], whole: bool = True) -> dict[Any, dict[Any, Row]]:
    """Rows of questions that were served together; those vary together, too.

    Args:
        whole: leave out groups that other questions were in as well: their time was shared with these.
    """
    found: dict[Any, dict[Any, Row]] = {}
    groups = _groups(rows)
    asked = {row["question_id"] for row in rows}
    for row in rows:
        group = groups[row["question_id"]]
        if not whole or asked.issuperset(group):
            found.setdefault(group, {})[row["question_id"], row["turn"], row["repeat"]] = row
    return found


def _groups(rows: Sequence[Row]) -> dict[Any, tuple[Any, ...]]:
    """With which questions every question was served. Later turns may be of fewer."""
    first = [row for row in rows if row["turn"] == 0]
    return {row["question_id"]: tuple(row.get("together", [row["question_id"]])) for row in first}


def mixed(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence if questions of several categories were served together."""
    categories = {row["question_id"]: row["category"] for row in rows}
    by_method = {name: [r for r in rows if r["method"] == name] for name in {r["method"] for r in rows}}
    groups = {group for own in by_method.values() for group in _groups(own).values()}
    several = [group for group in groups if len({categories.get(question) for question in group}) > 1]
    if several:
        yield (
            f"{len(several)} of {len(groups)} groups that were served together are of several categories, and in no "
            "category's speed-up: there are not enough questions of one"
        )
