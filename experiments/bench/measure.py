"""One cell: prepare the methods, pass the gate, time by turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from specdec.experiments.bench import gate
from specdec.experiments.bench.clock import NOT_CAPTURED, Prepared, Turn, by_turns, prepare, quantiles, ratios
from specdec.experiments.bench.cost import cost
from specdec.experiments.bench.inputs import Inputs
from specdec.experiments.bench.results import Json
from specdec.experiments.bench.rivals import Attend, Method
from specdec.experiments.bench.sdpa import Sdpa


@torch.inference_mode()
def measure(inputs: Inputs, chosen: Sequence[Method], seconds: float, copy_bandwidth: float | None) -> Json:
    """The entry of a cell.

    Args:
        inputs: of the cell.
        chosen: ours first; what fails, for want of memory say, is left out with its error.
        seconds: of timing, about.
        copy_bandwidth: bytes per second, None on the CPU, where only ratios are told.

    Returns:
        gate per method, of an eager call and of the captured calls, which are what is timed; times or ratios, bytes;
        which way SDPA went; `red` names methods whose results were wrong, and nothing is timed then.
    """
    wanted = gate.expected(inputs)
    checks: dict[str, Json] = {}
    paths: dict[str, str] = {}
    notes: dict[str, str] = {}
    ready: dict[str, Attend] = {}
    for method in chosen:
        try:
            attend = method.make(inputs)
            checks[method.name] = _check(gate.error(attend(*inputs.pools[0]), wanted), wanted)
        except (RuntimeError, ValueError, ImportError, TypeError, AttributeError) as failure:
            notes[method.name] = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
            continue
        ready[method.name] = attend
        if isinstance(attend, Sdpa):
            paths[method.name] = attend.path(*inputs.pools[0])
    turns: dict[str, Turn] = {}
    for name, attend in ready.items():
        if not all(check["right"] for check in checks.values()):
            break
        calls: list[Callable[[], object]] = [partial(attend, k, v) for k, v in inputs.pools]
        prepared = prepare(calls, inputs.q.device)
        turns[name] = prepared.turn
        if not prepared.captured:
            notes[name] = NOT_CAPTURED
        if prepared.outputs:
            checks[f"{name}, captured"] = _check(_replayed(prepared, wanted), wanted)
    entry: Json = {"gate": checks, "red": [name for name, check in checks.items() if not check["right"]]}
    if chosen[0].name not in ready:
        entry["red"].append(chosen[0].name)
    if not entry["red"]:
        entry |= _tell(by_turns(turns, seconds), chosen[0].name, inputs, copy_bandwidth)
    return entry | ({"sdpa": paths} if paths else {}) | ({"notes": notes} if notes else {})


def _check(worst: float, wanted: gate.Expected) -> Json:
    return {"error": worst, "allowed": wanted.allowed, "right": worst <= wanted.allowed}


def _replayed(prepared: Prepared, wanted: gate.Expected) -> float:
    """The largest difference of what a replay writes, over all pools."""
    for out in prepared.outputs:
        out.fill_(math.nan)
    prepared.turn()
    return max(gate.error(out, wanted) for out in prepared.outputs)


def _tell(samples: dict[str, list[float]], ours: str, inputs: Inputs, copy_bandwidth: float | None) -> Json:
    arithmetic = cost(inputs.cell)
    told: Json = {"bytes": arithmetic.bytes, "flops": arithmetic.flops, "rounds": len(samples[ours])}
    told["times_as_fast"] = {
        name: _rounded(ratios(samples[ours], theirs), 3) for name, theirs in samples.items() if name != ours
    }
    if copy_bandwidth is not None:
        told["seconds"] = {name: _rounded(quantiles(s), 9) for name, s in samples.items()}
        told["share_of_copy"] = {
            name: round(arithmetic.bytes / quantiles(s).p50 / copy_bandwidth, 4) for name, s in samples.items()
        }
    return told


def _rounded(values: Sequence[float], digits: int) -> list[float]:
    return [round(value, digits) for value in values]
