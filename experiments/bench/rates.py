"""What the machine can do at best, measured at every start: a copy, a read and a product, all too large for caches."""

from __future__ import annotations

from typing import NamedTuple

import torch

from specdec.experiments.bench.clock import Call, device_turn

BYTES = 1 << 30
SIDE = 8192  # of the square product


class Rates(NamedTuple):
    """Best of a few on CUDA.

    Attributes:
        copy_bandwidth: bytes per second, read and written, of a copy. Shares and floors are of this one.
        read_bandwidth: bytes per second of a sum, which writes nothing. What mostly reads may reach it, and so more
            than 100 % of the copy.
        matmul_rate: FLOP per second of a bfloat16 product.
    """

    copy_bandwidth: float
    read_bandwidth: float
    matmul_rate: float


def measure_rates(device: torch.device) -> Rates | None:
    """The rates of a GPU; None on a CPU, where only ratios are told."""
    if device.type != "cuda":
        return None
    source, target = (torch.ones(BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    copy = _best(lambda: target.copy_(source))
    numbers = source.view(torch.float32)
    read = _best(numbers.sum)
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    return Rates(2 * BYTES / copy, BYTES / read, 2 * SIDE**3 / _best(lambda: a @ b))


def _best(call: Call, repeats: int = 20) -> float:
    """Seconds."""
    turn = device_turn([call]).turn
    return min(turn() for _ in range(repeats))
