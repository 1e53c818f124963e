"""How much KV a run of `generate_many` gets, and in which pieces."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from specdec.cache import ROOM_STEP, Paging
from specdec.target import Target
from specdec.turn import Turn

PAGE = 64  # tokens
LONGEST = 4096  # tokens of a text, where nobody says: slots have tables, and drafters buffers, of that length
SHARE = 0.5  # of the memory that is free, at most, where nobody says
ROWS = {"cpu": 256, "cuda": 2048}  # of a forward pass, roots and chunks of prompts together


@dataclass(frozen=True, slots=True)
class Pool:
    """What `generate_many` was asked for; see there.

    Raises:
        ValueError: a number is out of range.
    """

    slots: int
    max_length: int | None = None
    memory: int | float | None = None
    page: int | None = None
    rows: int | None = None
    sharing: bool = True
    keep: bool = True
    cancelled: set[int] = field(default_factory=set)
    watch: Callable[[Turn], None] | None = None

    def __post_init__(self) -> None:
        for name in ("slots", "max_length", "page", "rows"):
            value = getattr(self, name)
            if (value is None and name != "slots") or (type(value) is int and value >= 1):
                continue
            raise ValueError(f"{name} is {value!r}; expected an integer of at least 1")
        share = isinstance(self.memory, float) and 0 < self.memory <= 1
        if self.memory is not None and not share and not (type(self.memory) is int and self.memory > 1):
            raise ValueError(
                f"memory is {self.memory!r}; expected bytes, an integer, or a share of what is free, 0.0 to 1.0"
            )

    def length(self, target: Target) -> int:
        """Tokens of a text at most."""
        longest = self.max_length or LONGEST
        return min(longest, target.max_positions or longest)

    def paging(self, target: Target, room: int, whole: bool = False) -> Paging:
        """Pages for all slots, or as many as there is memory for.

        Args:
            target: whose KV they hold.
            room: places behind a text.
            whole: a slot's room is one page where nobody says, as in a dense cache.

        Raises:
            ValueError: there is no memory for a single page.
        """
        places = self.length(target) + 2 * room
        if target.device.type != "cpu":
            places = -(-places // ROOM_STEP) * ROOM_STEP
        size = min(self.page or (places if whole else PAGE), places)
        wanted = self.slots * -(-places // size)
        given = self._bytes(target.device)
        pages = min(wanted, given // max(size * target.kv_bytes, 1) - Paging.first(target.device))
        if pages < 1:
            raise ValueError(
                f"memory for KV is {given} bytes, less than a page of {size} tokens takes "
                f"({size * target.kv_bytes} bytes); give generate_many more memory, or smaller pages"
            )
        return Paging(pages, size)

    def _bytes(self, device: torch.device) -> int:
        if type(self.memory) is int:
            return self.memory
        return int((self.memory or SHARE) * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses: of the GPU, or of the machine (on Linux with what it would give back)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
