"""What was accepted, by depth, sibling rank and position in the text: from the walks in requests.jsonl."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.experiments.intervals import Interval, mean, share
from specdec.experiments.records import Row, write_text
from specdec.tree.acceptance import measured_acceptance

Json = dict[str, Any]
FIRST_BUCKET = 16  # new tokens; every further bucket ends at twice as many
FOLDER = "acceptance"
Step = tuple[int | str, int, tuple[int, ...], tuple[int, ...]]  # question, bucket, children, ranks
Cells = dict[Any, dict[Any, list[int]]]  # cell -> question -> [accepted, offered]


def acceptance_tables(rows: Sequence[Row], whole: bool = True) -> Json | None:
    """`accepted_by` of summary.json, see experiments/README.md; None where no step was recorded.

    Args:
        rows: of one method.
        whole: by depth and rank together, and by position, too.
    """
    steps = count_steps(rows)
    if not steps:
        return None
    found = _slice(steps)
    if whole:
        found["depth_rank"] = _by_depth_and_rank(steps)
        buckets: dict[int, Counter[Step]] = defaultdict(Counter)
        for step, times in steps.items():
            buckets[step[1]][step] += times
        found["position"] = [_between(bucket) | _slice(buckets[bucket]) for bucket in sorted(buckets)]
    return found


def count_steps(rows: Iterable[Row]) -> Counter[Step]:
    """Steps that were alike, and how often. What an earlier version wrote, or another engine, may have none."""
    found: Counter[Step] = Counter()
    for row in rows:
        place = row.get("first_tokens", 1)
        for emitted, children, ranks in zip(
            row["accept_lengths"], row.get("children") or [], row.get("ranks") or [], strict=False
        ):
            found[row["question_id"], bucket_of(place), tuple(children), tuple(ranks)] += 1
            place += emitted
    return found


def bucket_of(place: int) -> int:
    """Of the step whose first token is new token number `place`, counted from 0."""
    return (place // FIRST_BUCKET).bit_length()


def _between(bucket: int) -> Json:
    """First and last new token of a bucket."""
    return {"first": FIRST_BUCKET << bucket >> 1 if bucket else 0, "last": (FIRST_BUCKET << bucket) - 1}


def write_vectors(directory: Path, target: str, methods: Sequence[Json], rows: Sequence[Row]) -> Path:
    """`acceptance/<method>.json` of every method that drafted, what `tree=sequoia tree.acceptance=FILE` reads; returns
    their folder."""
    folder = directory / FOLDER
    for entry in methods:
        steps = count_steps(row for row in rows if row["method"] == entry["name"])
        measured = measured_acceptance(((children, ranks), times) for (_, _, children, ranks), times in steps.items())
        if measured["acceptance"]:
            about = {"what": "chance by depth and rank that this child of an accepted node is the accepted one"}
            about |= {"method": entry["name"], "target": target}
            about |= {name: entry[name] for name in ("drafter", "tree", "sampling")}
            lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in (about | measured).items())
            folder.mkdir(exist_ok=True)
            write_text(folder / f"{entry['name']}.json", "{\n" + ",\n".join(lines) + "\n}\n")
    return folder


def _slice(steps: Mapping[Step, int]) -> Json:
    """Of some steps: how many, the mean length of their walks, and acceptance by depth and by rank."""
    by_depth: Cells = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    by_rank: Cells = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    length: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    for (question, _, children, ranks), times in steps.items():
        length[question][0] += times * (len(ranks) + 1)
        length[question][1] += times
        for depth, count in enumerate(children):
            taken = ranks[depth] if depth < len(ranks) else None
            if count:
                _add(by_depth[depth][question], taken is not None, times)
            for rank in range(count):
                _add(by_rank[rank][question], rank == taken, times)
    counts = {question: n for question, (_, n) in length.items()}
    return {
        "steps": sum(counts.values()),
        "length": mean([(tokens, n) for tokens, n in length.values()]),
        "depth": [_cell(by_depth[depth], counts, share) for depth in range(len(by_depth))],
        "rank": [_cell(by_rank[rank], counts, mean) for rank in range(len(by_rank))],
    }


def _by_depth_and_rank(steps: Mapping[Step, int]) -> list[list[Json]]:
    cells: Cells = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    counts: Counter[Any] = Counter()
    for (question, _, children, ranks), times in steps.items():
        counts[question] += times
        for depth, count in enumerate(children):
            for rank in range(count):
                _add(cells[depth, rank][question], depth < len(ranks) and ranks[depth] == rank, times)
    rows: list[list[Json]] = []
    for depth, rank in sorted(cells):
        rows.extend([] for _ in range(depth + 1 - len(rows)))
        rows[depth].append(_cell(cells[depth, rank], counts, share))
    return rows


def _add(counts: list[int], accepted: bool, times: int) -> None:
    counts[0] += times * accepted
    counts[1] += times


def _cell(found: Mapping[Any, Sequence[int]], steps: Mapping[Any, int], of_steps: Any) -> Json:
    """`of_steps`: whether a step accepts one at most, as of a depth (`share`), or may accept more (`mean`)."""
    unconditional: Interval = of_steps([(found[q][0] if q in found else 0, n) for q, n in steps.items()])
    return {
        "accepted": sum(a for a, _ in found.values()),
        "offered": sum(n for _, n in found.values()),
        "conditional": share([(a, n) for a, n in found.values()]),
        "unconditional": unconditional,
    }
