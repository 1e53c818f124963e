"""One cell: prepare the methods, pass the gate, time by turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from specdec.experiments.bench import gate
from specdec.experiments.bench.clock import Turn, by_turns, device_turn, host_turn, quantiles, ratios
from specdec.experiments.bench.cost import cost
from specdec.experiments.bench.inputs import Inputs
from specdec.experiments.bench.rivals import Attend, Method

Json = dict[str, Any]


@torch.inference_mode()
def measure(inputs: Inputs, chosen: Sequence[Method], seconds: float, copy_bandwidth: float | None) -> Json:
    """The entry of a cell.

    Args:
        inputs: of the cell.
        chosen: ours first; what fails, for want of memory say, is left out with its error.
        seconds: of timing, about.
        copy_bandwidth: bytes per second, None on the CPU, where only ratios are told.

    Returns:
        gate per method, times or ratios, bytes; `red` names methods whose results were wrong; nothing is timed then.
    """
    wanted = gate.expected(inputs)
    checks: Json = {}
    turns: dict[str, Turn] = {}
    notes: dict[str, str] = {}
    ready: dict[str, Attend] = {}
    for method in chosen:
        try:
            attend = method.make(inputs)
            worst = gate.error(attend(*inputs.pools[0]), wanted)
        except (RuntimeError, ValueError, ImportError, TypeError, AttributeError) as failure:
            notes[method.name] = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
            continue
        checks[method.name] = {"error": worst, "allowed": wanted.allowed, "right": worst <= wanted.allowed}
        ready[method.name] = attend
    entry: Json = {"gate": checks, "red": [name for name, check in checks.items() if not check["right"]]}
    if chosen[0].name not in ready:
        entry["red"].append(chosen[0].name)
    if not entry["red"]:
        for name, attend in ready.items():
            calls: list[Callable[[], object]] = [partial(attend, k, v) for k, v in inputs.pools]
            if inputs.q.device.type == "cuda":
                turns[name], captured = device_turn(calls)
                if not captured:
                    notes[name] = "not captured in a graph: the host's time is in it"
            else:
                turns[name] = host_turn(calls)
        entry |= _tell(by_turns(turns, seconds), chosen[0].name, inputs, copy_bandwidth)
    if notes:
        entry["notes"] = notes
    return entry


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


def copy_rate(device: torch.device, size: int = 1 << 30, repeats: int = 20) -> float:
    """Bytes per second, read and written, of a large copy on CUDA: the best of a few."""
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    turn, _ = device_turn([lambda: target.copy_(source)])
    return 2 * size / min(turn() for _ in range(repeats))


def matmul_rate(device: torch.device, size: int = 8192, repeats: int = 10) -> float:
    """FLOP per second of a large bfloat16 product on CUDA: the flat part of the roof."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    turn, _ = device_turn([lambda: a @ b])
    return 2 * size**3 / min(turn() for _ in range(repeats))
