"""What `load` in a run's configuration says, and the cells that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from specdec.experiments.validation import check_above_0, check_counts, check_whole
from specdec.serving_settings import ServingSettings

CLOSED, OPEN, CAPACITY = "closed", "open", "capacity"
SPECULATION = ("off", "on", "adaptive")
BATCHING = ("in_flight", "static")


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured in one go.

    Attributes:
        loop: CLOSED, as many requests in flight all the time; OPEN, requests come when they come; CAPACITY, a closed
            loop that says how fast they may come; or the name of what else is served once.
        level: requests in flight; of an open loop the rate of arrivals, as a share of the capacity.
        speculation, batching: see SPECULATION and BATCHING.
    """

    loop: str
    level: float
    speculation: str = SPECULATION[0]
    batching: str = BATCHING[0]

    @property
    def name(self) -> str:
        """In every file."""
        return f"{self.loop}_{self.level:g}_{self.speculation}_{self.batching}"


ALONE = Cell(
    "alone", 1, batching="static"
)  # plain decoding, one request after the other: texts and times to compare with


@dataclass(frozen=True, slots=True)
class Settings:
    """Of `load`, see conf/experiment/load.yaml."""

    concurrency: tuple[int, ...]
    rates: tuple[float, ...]
    slots: int
    capacity: float | None
    speculation: tuple[str, ...]
    batching: tuple[str, ...]
    requests: int
    requests_per_slot: int
    open_requests: int
    output_tokens: tuple[int, int] | None
    ignore_end: bool
    ttft_bound: float | None
    tpot_bound: float | None
    curve: str | float
    curve_seconds: float
    memory: int | float | None
    page: int | None
    sharing: bool

    @staticmethod
    def parse(raw: Any) -> Settings:
        """Look over the setting.

        Raises:
            ValueError: something is wrong with it.
        """
        names = {field.name for field in fields(Settings)}
        check_whole(raw, names, "load")
        for name in ("concurrency", "rates", "speculation", "batching"):
            if not isinstance(raw[name], list):
                raise ValueError(f"load.{name} is {raw[name]!r}; expected a list")
        for value in raw["concurrency"]:
            check_counts({"load.concurrency": value})
        if not raw["concurrency"] and not raw["rates"]:
            raise ValueError("load has neither concurrency nor rates; give values of one at least")
        for name in ("slots", "requests", "requests_per_slot", "open_requests"):
            check_counts({f"load.{name}": raw[name]})
        for name in ("capacity", "ttft_bound", "tpot_bound"):
            if raw[name] is not None:
                check_above_0(f"load.{name}", raw[name])
        for value in raw["rates"]:
            check_above_0("load.rates", value)
        check_above_0("load.curve_seconds", raw["curve_seconds"])
        for name in ("ignore_end", "sharing"):
            if type(raw[name]) is not bool:
                raise ValueError(f"load.{name} is {raw[name]!r}; expected true or false")
        try:
            ServingSettings(1, None, raw["memory"], raw["page"])
        except ValueError as error:
            raise ValueError(f"load.{error}") from None
        words = [
            "on" if value is True else "off" if value is False else value for value in raw["speculation"]
        ]  # of YAML
        return Settings(
            **{
                **raw,
                "concurrency": tuple(sorted(set(raw["concurrency"]))),
                "rates": tuple(sorted(set(raw["rates"]))),
                "speculation": _some("speculation", words, SPECULATION),
                "batching": _some("batching", raw["batching"], BATCHING),
                "output_tokens": _range(raw["output_tokens"]),
            }
        )

    @property
    def slots_needed(self) -> int:
        """The most requests that are served at once."""
        return max((*self.concurrency, *([self.slots] if self.rates else [])))

    def slots_of(self, cell: Cell) -> int:
        """Requests that a cell serves at once, at most."""
        return int(cell.level) if cell.loop != OPEN else self.slots

    def count(self, cell: Cell) -> int:
        """Requests of a cell."""
        if cell.loop in (OPEN, CAPACITY):
            return self.open_requests
        return max(self.requests, self.requests_per_slot * int(cell.level))

    @property
    def most(self) -> int:
        """Requests of the largest cell."""
        return max(self.count(cell) for cell in self.cells())

    def cells(self) -> list[Cell]:
        """All, those of one level together."""
        levels = [(CLOSED, level) for level in self.concurrency] + [(OPEN, rate) for rate in self.rates]
        return [Cell(loop, level, s, b) for loop, level in levels for s in self.speculation for b in self.batching]

    def plan(self, rounds: int) -> Iterator[tuple[int, Cell]]:
        """The order of measurement: round by round, level by level; who comes first at a level changes with the round,
        so that whatever slows the machine down slows all of them down."""
        beside = len(self.speculation) * len(self.batching)
        cells = self.cells()
        for number in range(rounds):
            for first in range(0, len(cells), beside):
                turn = number % beside
                group = cells[first : first + beside]
                yield from ((number, cell) for cell in (*group[turn:], *group[:turn]))


def _some(name: str, values: Sequence[Any], known: Sequence[str]) -> tuple[str, ...]:
    if not values or any(value not in known for value in values):
        raise ValueError(f"load.{name} is {list(values)!r}; expected some of {', '.join(known)}")
    return tuple(value for value in known if value in values)


def _range(given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    whole = isinstance(given, list) and len(given) == 2 and all(type(value) is int for value in given)
    if not whole or not 2 <= given[0] <= given[1]:
        raise ValueError(f"load.output_tokens is {given!r}; expected [least, most], whole numbers from 2 on, or null")
    return given[0], given[1]
