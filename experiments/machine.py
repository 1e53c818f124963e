"""What the machine gives: memory in use at most, and the bandwidth of a large copy."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch

from specdec.experiments.provenance import cpu_model

COPY_BYTES = 256 << 20


def reset_peak_memory(device: torch.device) -> None:
    """Begin to watch for a new peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux: the peak of the resident set is the present one again
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes in use at most since the reset; see `metrics.peak_memory`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # macOS and the like: the process's peak so far, in bytes

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak_bandwidth(device: torch.device, repeats: int = 5) -> float:
    """Bytes per second, read and written, of a copy too large for caches: the best of a few."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    best = 0.0
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = max(best, 2 * COPY_BYTES / (time.perf_counter() - started))
    return best


def device_name(device: torch.device) -> str:
    """Of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def wait(device: torch.device) -> None:
    """Until a GPU has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
