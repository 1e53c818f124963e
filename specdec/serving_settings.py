"""What a run of `generate_many` was asked for: how many requests at once, how much KV, and in which pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from specdec.arrivals import Served
from specdec.cache import ROOM_STEP, Paging
from specdec.core import Drafter, own_kv_bytes
from specdec.decode import steps_late
from specdec.free_memory import free_bytes
from specdec.pages import PagePool
from specdec.scheduler import Scheduler
from specdec.step import Step
from specdec.target import Target
from specdec.turn import Turn

PAGE = 64  # tokens
LONGEST = 4096  # tokens of a text, where nobody says: slots have tables, and drafters buffers, of that length
SHARE = 0.5  # of the memory that is free, at most, where nobody says
ROWS = {"cpu": 256, "cuda": 2048}  # of a forward pass, roots and chunks of prompts together


@dataclass(frozen=True, slots=True)
class ServingSettings:
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

    def paging(self, target: Target, drafter: Drafter, whole: bool = False) -> Paging:
        """Pages for all slots, or as many as there is memory for beside the drafter's own KV.

        Args:
            target: whose KV they hold.
            drafter: who works with it.
            whole: a slot's room is one page where nobody says, as in a dense cache.

        Raises:
            ValueError: there is no memory for a single page.
        """
        length, device = self.length(target), target.device
        places = length + 2 * drafter.needs.room
        if device.type != "cpu":
            places = -(-places // ROOM_STEP) * ROOM_STEP
        size = min(self.page or (places if whole else PAGE), places)
        wanted = self.slots * -(-places // size)
        given, drafts = self._bytes(target), own_kv_bytes(drafter, self.slots, length, device)
        pages = min(wanted, (given - drafts) // max(size * target.kv_bytes, 1) - Paging.first(device))
        if pages < 1:
            taken = f", of which the drafter's own takes {drafts} for {self.slots} x {length} tokens" if drafts else ""
            advice = "more memory, fewer slots or a smaller max_length" if drafts else "more memory, or smaller pages"
            raise ValueError(
                f"memory for KV is {given} bytes{taken}, less than a page of {size} tokens takes "
                f"({size * target.kv_bytes} bytes); give generate_many {advice}"
            )
        return Paging(pages, size)

    def scheduler(self, run: Step) -> Scheduler[Served]:
        """Of the pages of `run`."""
        needs, target, paging = run.drafter.needs, run.target, run.paging
        assert paging is not None
        device = target.device
        return Scheduler(
            PagePool(paging.pages, paging.size, Paging.first(device)),
            self.slots,
            needs.room,
            rows=self.rows or ROWS.get(device.type, ROWS["cuda"]),
            late=steps_late(device) * needs.max_nodes,
            sharing=self.sharing and not needs.hidden_layers,  # what is not read has no hidden states
            width=target.cache.block_table.shape[1] if device.type == "cpu" else 0,  # read in place, see TreeCache
        )

    def _bytes(self, target: Target) -> int:
        """What the target has from a run before is given back when another one begins."""
        if type(self.memory) is int:
            return self.memory
        return int((self.memory or SHARE) * (free_bytes(target.device) + target.cache.nbytes))
