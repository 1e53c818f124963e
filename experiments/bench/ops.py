"""The small operations of a step: every backend against the plain one."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import NamedTuple

import torch

from specdec.experiments.bench.clock import NOT_CAPTURED, by_turns, prepare, quantiles, ratios
from specdec.experiments.bench.op_runs import OPS, Outputs
from specdec.experiments.bench.results import Json

REPEATS = 8  # calls of a graph


class OpCell(NamedTuple):
    """A batch of trees."""

    op: str
    batch: int
    nodes: int

    @property
    def key(self) -> str:
        """Its name in a result."""
        return f"{self.op} B={self.batch} N={self.nodes}"


def op_cells(small: bool) -> list[OpCell]:
    """Every operation on a few sizes."""
    batches, nodes = ((1, 8), (8, 32)) if small else ((1, 8, 32), (8, 32, 128))
    return [OpCell(op, b, n) for op, b, n in product(OPS, batches, nodes)]


@torch.inference_mode()
def measure_op(cell: OpCell, device: torch.device, seconds: float) -> Json:
    """The entry of a cell: backends compared bit for bit, eager and captured, then timed by turns."""
    backends, make = OPS[cell.op]
    ours = "triton" if device.type == "cuda" else "host"
    if ours not in backends:
        return {"red": [], "gate": {}, "times_as_fast": {}, "notes": {ours: f"{cell.op} has no such backend"}}
    run, again = (make(cell.batch, cell.nodes, device) for _ in range(2))  # some write into what they were given
    wanted = again("naive")
    checks = {ours: _equal(run(ours), wanted)}
    prepared = {}
    if checks[ours]:
        prepared = {name: prepare([partial(run, name)] * REPEATS, device) for name in (ours, "naive")}
        for name, made in prepared.items():
            made.turn()
            if made.outputs:
                checks[f"{name}, captured"] = all(_equal(outputs, wanted) for outputs in made.outputs)
    entry: Json = {
        "gate": {name: {"right": right} for name, right in checks.items()},
        "red": [name for name, right in checks.items() if not right],
    }
    if not entry["red"]:
        samples = by_turns({name: made.turn for name, made in prepared.items()}, seconds)
        entry["times_as_fast"] = {"naive": [round(x, 3) for x in ratios(samples[ours], samples["naive"])]}
        if device.type == "cuda":
            entry["seconds"] = {name: [round(x, 9) for x in quantiles(s)] for name, s in samples.items()}
    if notes := {name: NOT_CAPTURED for name, made in prepared.items() if not made.captured}:
        entry["notes"] = notes
    return entry


def _equal(outputs: Outputs, wanted: Outputs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))
