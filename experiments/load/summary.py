"""What summary.json says of a run under load, made from its rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from specdec import metrics, registry
from specdec.experiments.load.metrics import all_of
from specdec.experiments.load.records import CellRecords
from specdec.experiments.load.settings import BATCHING, CLOSED, OPEN, SPECULATION, Cell, Settings
from specdec.experiments.methods import Method
from specdec.experiments.records import Row
from specdec.experiments.summary import stats_of, verdict

COUNTED = (
    "steps new_tokens mean_accepted_length_pooled mean_accepted_length_per_request draft_acceptance_rate "
    "node_acceptance_rate acceptance_by_depth"
).split()  # metrics that do not depend on the load


def cell_entries(
    settings: Settings,
    records: CellRecords,
    methods: Mapping[str, Method],
    bounds: Mapping[str, float],
    allowed: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """Of every cell that has been served: what it is, its metrics, its losslessness, its throughput over others'."""
    entries = []
    for cell in settings.cells():
        cells = [row for (name, _), row in records.cells.items() if name == cell.name]
        if not cells:
            continue
        rows = [row for each in cells for row in records.requests[cell.name, each["round"]]]
        method = methods[cell.speculation]
        rule = registry.build("acceptance", method.acceptance, allow_targets=allowed)
        entries.append(
            {
                "name": cell.name,
                "loop": cell.loop,
                "level": cell.level,
                "speculation": cell.speculation,
                "batching": cell.batching,
                "slots": cells[0]["slots"],
                "rate": cells[0]["rate"],
                "rounds": len(cells),
                "requests": len(rows),
                "metrics": all_of(rows, cells, bounds),
                "lossless": verdict(method if cell.speculation != SPECULATION[0] else _plain(method), rule, rows),
                "over_off": _over(records, cell, Cell(cell.loop, cell.level, SPECULATION[0], cell.batching), seed),
                "over_static": _over(records, cell, Cell(cell.loop, cell.level, cell.speculation, BATCHING[1]), seed),
                "over_better": _over_better(settings, records, cell, seed),
            }
        )
    return entries


def _plain(method: Method) -> Method:
    """Plain decoding under load is compared with plain decoding alone, so it is no baseline here."""
    return replace(method, baseline=method.name)


def rounds_of(records: CellRecords, cell: Cell) -> dict[int, tuple[int, float]]:
    """New tokens and seconds of every round."""
    served = {number: row for (name, number), row in records.cells.items() if name == cell.name}
    return {
        number: (sum(r["new_tokens"] for r in records.requests[cell.name, number]), row["seconds"])
        for number, row in served.items()
    }


def _over(records: CellRecords, cell: Cell, other: Cell, seed: int) -> dict[str, Any] | None:
    """Throughput over another cell's, of rounds that both have; None for itself, in an open loop, where requests come
    as they come, and where the other was not measured."""
    ours, theirs = rounds_of(records, cell), rounds_of(records, other)
    both = sorted(ours.keys() & theirs.keys())
    if cell == other or cell.loop == OPEN or not both:
        return None
    found = metrics.speedup([ours[n] for n in both], [theirs[n] for n in both], seed=seed)
    return {**found._asdict(), "rounds": len(both), "other": other.speculation}


def _over_better(settings: Settings, records: CellRecords, cell: Cell, seed: int) -> dict[str, Any] | None:
    """Of an adaptive cell: over speculation off or on, whichever wrote more a second there."""
    if cell.speculation != SPECULATION[2]:
        return None
    others = [Cell(cell.loop, cell.level, name, cell.batching) for name in SPECULATION[:2]]
    found = [over for other in others if (over := _over(records, cell, other, seed)) is not None]
    return min(found, key=lambda over: over["ratio"]) if len(found) == 2 else None


def method_entries(
    records: CellRecords, methods: Mapping[str, Method], batch: int, allowed: Sequence[str]
) -> list[dict[str, Any]]:
    """`methods` of summary.json: speculation off, on and adaptive over all cells, without what depends on the load."""
    entries = []
    for speculation, method in methods.items():
        rows = [
            row
            for (name, number), cell in records.cells.items()
            if cell["speculation"] == speculation and cell["loop"] in (CLOSED, OPEN)
            for row in records.requests[name, number]
        ]
        rule = registry.build("acceptance", method.acceptance, allow_targets=allowed)
        counted = stats_of(rows).summary()
        entries.append(
            {
                "name": method.name,
                "cell": None,
                "baseline": method.baseline,
                "drafter": method.drafter,
                "tree": method.tree,
                "acceptance": method.acceptance,
                "backend": None,
                "sampling": {f: getattr(method.sampling, f) for f in method.sampling.__dataclass_fields__},
                "batch": batch,
                "requests": len(rows),
                "lossless": verdict(_plain(method) if method.baseline is None else method, rule, rows),
                "metrics": {name: counted[name] for name in COUNTED},
                "speedup": None,
                "accepted_by": None,
                "by_category": {},
            }
        )
    return entries


def totals(records: CellRecords) -> tuple[int, set[Any]]:
    """How many requests were served, and of which questions."""
    rows: list[Row] = [row for found in records.requests.values() for row in found]
    return len(rows), {row["question_id"] for row in rows}
