"""How often the child of each rank is the accepted one: from walks down trees, and in the files that `sequoia` reads.

Of a node's children one at most is accepted, and they are tried in their order. The chance of rank k is estimated as
h_k * (1 - h_0) * ... * (1 - h_(k-1)), where h_k is how often rank k was accepted, of the walks that tried it: that came
to a node with more than k children, and accepted none before it. Where all nodes have as many children this is accepted
over walks; where some have fewer, these say nothing about ranks they do not have (Kaplan and Meier, 1958), and a row
never adds up to more than 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.tree.cost import read_json

Walk = tuple[Sequence[int], Sequence[int]]  # see RequestStats: a step's `children`, and its `ranks`
LEAST = 50  # walks that a depth needs for a row of its own


def measured_acceptance(walks: Iterable[tuple[Walk, int]], least: int = LEAST) -> dict[str, Any]:
    """What goes into a file.

    Args:
        walks: each with how often it was seen.
        least: walks that a depth needs for a row of its own; the last row is of it and all deeper ones together.

    Returns:
        `acceptance`, by depth and rank, and `places`, as many: how many walks tried that rank. Both empty where no walk
        came to a node with children.
    """
    tried: list[list[int]] = []
    accepted: list[list[int]] = []
    for (children, ranks), times in walks:
        for depth, count in enumerate(children):
            if not count:
                break
            taken = ranks[depth] if depth < len(ranks) else None
            for table, places in ((tried, count if taken is None else taken + 1), (accepted, count)):
                table.extend([] for _ in range(depth + 1 - len(table)))
                table[depth].extend([0] * (places - len(table[depth])))
            for rank in range(count if taken is None else taken + 1):
                tried[depth][rank] += times
            if taken is not None:
                accepted[depth][taken] += times
    own = next((depth for depth, row in enumerate(tried) if row[0] < least), len(tried))
    if sum(row[0] for row in tried[own:]) < least:
        own -= 1
    own = max(own, 0)
    if tried:
        tried[own:], accepted[own:] = [_sum(tried[own:])], [_sum(accepted[own:])]
    rows = [_chances(a, t) for a, t in zip(accepted, tried, strict=True)]
    return {"acceptance": rows, "places": tried}


def read_acceptance(file: str | Path) -> Sequence[Any]:
    """The `acceptance` of a file: of `specdec bench curve`, or of a run's folder `acceptance`.

    Raises:
        ValueError: it is not there, or has none.
    """
    content = read_json(file, "acceptance")
    found = content.get("acceptance") if isinstance(content, Mapping) else None
    if not found:
        raise ValueError(
            f"{str(file)!r} has no `acceptance`; measure it with: specdec bench curve drafter=draft_model, or specdec "
            "run experiment=acceptance, which writes acceptance/METHOD.json"
        )
    return list(found)


def _chances(accepted: Sequence[int], tried: Sequence[int]) -> list[float]:
    left, row = 1.0, []
    for taken, times in zip(accepted, tried, strict=False):
        if not times:
            break
        row.append(round(left * taken / times, 6))
        left *= 1 - taken / times
    return row


def _sum(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(row[k] for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
