"""What the tree attention kernel is to reach on a GPU, and whether a result says so.

Times hold for bfloat16, heads 32/8, head size 128 and a copy of 4.3 TB/s; on other machines they grow with the copy's
time. They are targets set by arithmetic before any measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from specdec.experiments.bench.grid import EVEN, RAGGED, Cell

COPY = 4.3e12  # bytes per second
MICROSECONDS = {  # (batch, context), N = 16
    (1, 1024): 9.0, (1, 4096): 12.0, (1, 16384): 24.0, (1, 65536): 76.0,
    (8, 1024): 16.0, (8, 4096): 40.0, (8, 16384): 139.0, (8, 65536): 545.0,
    (32, 1024): 39.0, (32, 4096): 139.0, (32, 16384): 545.0, (32, 65536): 2150.0,
}  # fmt: skip
GROWTH = {8: 1.05, 16: 1.10, 32: 1.6, 64: 2.8}  # N nodes over one, B >= 8 and 16384 slots
RIVALS = (  # rival, cells, times as fast as it; of SDPA's two forms as the better one
    ("sdpa", (Cell((16384,), 16), Cell((65536,), 16)), 4.0),
    ("sdpa", (Cell((16384,) * 8, 16), Cell((16384,) * 32, 16)), 2.0),
    ("flex", (Cell((16384,), 16), Cell((16384,) * 8, 16)), 1.0),
    ("flex", (Cell((16384,) * 8, 32), Cell(RAGGED, 16)), 1.5),
    ("varlen", (Cell((16384,), 8, chain=True), Cell((16384,) * 8, 8, chain=True)), 0.9),
    ("flash_attn", (Cell((16384,), 8, chain=True), Cell((16384,) * 8, 8, chain=True)), 0.9),
    ("flashinfer", (Cell((16384,), 8, chain=True), Cell((16384,) * 8, 8, chain=True)), 0.9),
    ("flashinfer", (Cell((16384,), 16), Cell((16384,) * 8, 16)), 1.0),
)
FORMS = {"sdpa": ("sdpa", "sdpa_packed")}
OPEN = "not measured yet"


class Verdict(NamedTuple):
    """One target: what, the wanted and the measured number, and what that means."""

    what: str
    wanted: str
    got: str
    state: str


def verdicts(result: dict[str, Any] | None) -> list[Verdict]:
    """Every target, in order; without a GPU's result all are open."""
    measured = result if result and result["machine"].get("device") == "cuda" else {"cells": {}, "machine": {}}
    return [
        *_times(measured["cells"], measured["machine"].get("copy_bandwidth", COPY)),
        *_growth(measured["cells"]),
        *_others(measured["cells"]),
    ]


def _times(cells: dict[str, Any], copy: float) -> Iterator[Verdict]:
    for (batch, context), allowed in MICROSECONDS.items():
        at_most = allowed * COPY / copy
        got = _seconds(cells, Cell((context,) * batch, 16))
        yield _at_most(f"B={batch} L={context} N=16", at_most, None if got is None else got * 1e6, " us")


def _growth(cells: dict[str, Any]) -> Iterator[Verdict]:
    for nodes, allowed in GROWTH.items():
        one, many = (_seconds(cells, Cell((16384,) * 8, n)) for n in (1, nodes))
        yield _at_most(f"B=8 L=16384: N={nodes} over N=1", allowed, many / one if one and many else None, "x")
    even, ragged = (_seconds(cells, Cell(contexts, 16)) for contexts in (EVEN, RAGGED))
    yield _at_most("ragged over even, the same slots", 1.15, ragged / even if even and ragged else None, "x")


def _others(cells: dict[str, Any]) -> Iterator[Verdict]:
    wide = _seconds(cells, Cell((16384,) * 8, 16))
    narrow = _seconds(cells, Cell((16384,) * 8, 16, kv_dtype="float8_e4m3fn"))
    yield _at_least("bfloat16 over float8 KV, B=8 L=16384 N=16", 1.7, wide / narrow if wide and narrow else None)
    for rival, compared, factor in RIVALS:
        for cell in compared:
            found = _times_as_fast(cells.get(cell.key, {}), rival)
            shape = "chain" if cell.chain else "tree"
            what = f"{rival} over ours, {shape} B={cell.batch} L={cell.context} N={cell.nodes}"
            yield _at_least(what, factor, found)


def _times_as_fast(entry: dict[str, Any], rival: str) -> float | None:
    """Over the best form of a rival. None as long as one was neither timed nor has told why it could not run."""
    times, forms = entry.get("times_as_fast", {}), FORMS.get(rival, (rival,))
    if any(form not in times and form not in entry.get("notes", {}) for form in forms):
        return None
    return min((float(times[form][1]) for form in forms if form in times), default=None)


def _seconds(cells: dict[str, Any], cell: Cell) -> float | None:
    found = cells.get(cell.key, {}).get("seconds", {}).get("triton")
    return float(found[1]) if found else None


def _at_most(what: str, wanted: float, got: float | None, unit: str) -> Verdict:
    state = OPEN if got is None else "reached" if got <= wanted else f"missed by {got / wanted:.2f}x"
    return Verdict(what, f"at most {_number(wanted)}{unit}", "" if got is None else f"{_number(got)}{unit}", state)


def _at_least(what: str, wanted: float, got: float | None) -> Verdict:
    state = OPEN if got is None else "reached" if got >= wanted else f"missed by {wanted / got:.2f}x"
    return Verdict(what, f"at least {_number(wanted)}x", "" if got is None else f"{_number(got)}x", state)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
