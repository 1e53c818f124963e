"""How much memory a run could have: of a GPU, or of the machine and the control groups that this process is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Of a control group: bytes it may have, bytes it has, and what of these are files' pages that it would give back.
UNIFIED = "memory.max", "memory.current", "inactive_file"  # version 2
APART = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"  # version 1


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses: of the GPU, with what torch keeps of it for itself and would give; or of the machine,
    with what it would give back, but no more than its control groups leave to this process (in a container)."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        split = torch.cuda.memory_stats(device).get("inactive_split_bytes.all.current", 0)  # rests beside what is used
        return int(torch.cuda.mem_get_info(device)[0]) + kept - int(split)
    return max(min([_of_the_machine(), *_of_groups()]), 0)


def _of_the_machine() -> int:
    found = _numbers(PROC / "meminfo").get("MemAvailable:")
    return found * 1024 if found is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_groups() -> Iterator[int]:
    """What is left of every limit that holds for this process: its group's, and those of the groups around that."""
    for line in _lines(PROC / "self" / "cgroup"):  # number:controllers:path
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, (limit, used, files) = GROUPS, UNIFIED
        elif "memory" in controllers.split(","):
            top, (limit, used, files) = GROUPS / "memory", APART
        else:
            continue
        own = top / path.strip().lstrip("/")
        for group in (own, *own.parents):  # in a container the path may be one of the machine's, which is not there
            if group.is_relative_to(top):
                most, now = ("".join(_lines(group / name)).strip() for name in (limit, used))
                if most.isdigit() and now.isdigit():  # no limit is "max", or more than any machine has
                    yield int(most) - int(now) + _numbers(group / "memory.stat").get(files, 0)


def _numbers(file: Path) -> dict[str, int]:
    """By the first word of a line its second."""
    return {words[0]: int(words[1]) for line in _lines(file) if len(words := line.split()) > 1}


def _lines(file: Path) -> list[str]:
    """None where there is no such file."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
