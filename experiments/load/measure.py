"""The measurement under load: what is served alone, how fast requests may come, then every cell in every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from specdec.engine import Engine
from specdec.experiments import lossless
from specdec.experiments.config import Measure
from specdec.experiments.load.metrics import request_rate, tpot, ttft
from specdec.experiments.load.records import CellRecords
from specdec.experiments.load.requests import Asked, arrival_times
from specdec.experiments.load.rows import cell_row, row_of
from specdec.experiments.load.serve import Outcome, in_batches, in_flight
from specdec.experiments.load.settings import ALONE, BATCHING, CAPACITY, OPEN, Cell, Settings
from specdec.experiments.measure import check_row, tell_reference
from specdec.experiments.methods import Method
from specdec.experiments.records import Row
from specdec.experiments.summary import without_nan
from specdec.experiments.workbench import Bench
from specdec.serving_settings import ServingSettings

TTFT_TIMES, TPOT_TIMES = 10, 3  # bounds where nobody says: times what a request takes alone, at the median


@dataclass(slots=True)
class Load:
    """Everything that is needed to measure.

    Attributes:
        methods: by speculation.
        asked: the requests.
        tell: called with every cell that was served, and its rows.
        compile: passes are compiled, before a cell begins.
    """

    bench: Bench
    methods: dict[str, Method]
    settings: Settings
    asked: Sequence[Asked]
    records: CellRecords
    measure: Measure
    tell: Callable[[Row, list[Row]], None]
    compile: bool = False
    _checks: dict[tuple[int, int, int], lossless.Check] = field(default_factory=dict)

    @property
    def capacity_cell(self) -> Cell:
        """Plain decoding in flight in a closed loop, before: how many requests a second may come."""
        return Cell(CAPACITY, self.settings.slots)

    @property
    def first(self) -> list[Cell]:
        """What is served once, before the cells."""
        return [ALONE, *([self.capacity_cell] if self.settings.rates and self.settings.capacity is None else [])]

    @property
    def total(self) -> int:
        """Rounds of cells, those of `first` included."""
        return len(self.first) + len(self.settings.cells()) * self.measure.repeats

    def run(self) -> None:
        """Serve what `records` does not hold yet, until the time limit, which is looked at before every cell."""
        began = time.perf_counter()
        for cell in self.first:
            self._cell(cell, 0)
        for number, cell in self.settings.plan(self.measure.repeats):
            limit = self.measure.time_limit
            if limit and time.perf_counter() - began > limit:
                return
            self._cell(cell, number)

    def warm_up(self) -> float:
        """Every method with every batching, as many as there are slots, for a few tokens; returns seconds."""
        began = time.perf_counter()
        count = min(self.settings.slots_needed, len(self.asked))
        for speculation in self.methods:
            for batching in self.settings.batching if self.measure.warmup_tokens else ():
                cell = Cell("warm-up", count, speculation, batching)
                self._serve(cell, self._engine(cell), self.asked[:count], None, self.measure.warmup_tokens)
        return time.perf_counter() - began

    def bounds(self) -> dict[str, float]:
        """Seconds to the first token and per token that are fast enough; the latter is NaN where nobody says and no
        request wrote a second token."""
        rows = self.records.requests[ALONE.name, 0]
        own = {
            "ttft": TTFT_TIMES * ttft(rows)["p50"],
            "tpot": TPOT_TIMES * tpot(rows)["p50"],
        }
        given = {"ttft": self.settings.ttft_bound, "tpot": self.settings.tpot_bound}
        return {name: own[name] if given[name] is None else float(given[name]) for name in own}  # type: ignore[arg-type]

    def capacity(self) -> float | None:
        """Requests a second that rates are shares of; None where no requests come by themselves."""
        if not self.settings.rates or self.settings.capacity is not None:
            return self.settings.capacity
        key = self.capacity_cell.name, 0
        return request_rate(self.records.requests[key], self.records.cells[key]["seconds"])

    def _cell(self, cell: Cell, number: int) -> None:
        key = cell.name, number
        if key not in self.records.cells:
            asked = self.asked if cell is ALONE else self.asked[: self.settings.count(cell)]
            rate = None if cell.loop != OPEN else cell.level * (self.capacity() or 1.0)
            gaps = None if rate is None else arrival_times(len(asked), rate, self.measure.seed, number)
            outcome = self._serve(cell, self._engine(cell), asked, gaps)
            served = [row_of(cell, number, place, each, outcome) for place, each in enumerate(asked)]
            rows = [row | {"check": self._check(cell, each, row)} for row, each in zip(served, asked, strict=True)]
            about = cell_row(cell, number, self.settings.slots_of(cell), rate, outcome)
            self.records.append(without_nan(about), without_nan(rows))
        self.tell(self.records.cells[key], self.records.requests[key])

    def _engine(self, cell: Cell) -> Engine:
        """One whose drafter has learnt nothing from other cells."""
        engine = self.bench.make(self.methods[cell.speculation])
        if self.compile:
            longest = max(len(each.request.prompt) + each.request.max_new_tokens for each in self.asked)
            engine.warmup(self.settings.slots_of(cell), longest, self.asked[0].request.sampling)
        if cell is not ALONE and (ALONE.name, 0) in self.records.requests:
            rows = self.records.requests[ALONE.name, 0]
            texts = [[*each.request.prompt, *row["token_ids"]] for each, row in zip(self.asked, rows, strict=True)]
            tell_reference(engine.drafter, *texts)
        return engine

    def _serve(
        self,
        cell: Cell,
        engine: Engine,
        asked: Sequence[Asked],
        gaps: Sequence[float] | None,
        most: int | None = None,
    ) -> Outcome:
        requests = [each.request for each in asked]
        if most is not None:
            requests = [replace(r, max_new_tokens=min(r.max_new_tokens, most)) for r in requests]
        if cell.batching != BATCHING[0]:
            return in_batches(engine, requests, self.settings.slots_of(cell), gaps)
        longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
        chosen = self.settings
        slots = chosen.slots_of(cell)
        settings = ServingSettings(slots, longest, chosen.memory, chosen.page, None, chosen.sharing)
        return in_flight(engine, requests, settings, gaps)

    def _check(self, cell: Cell, asked: Asked, row: Row) -> Row | None:
        """Against the text of plain decoding alone."""
        if cell is ALONE:
            return None
        expected, sampling = self.records.requests[ALONE.name, 0][row["request"]]["token_ids"], asked.request.sampling
        engine, plain = (self.bench.engines[self.methods[name].name] for name in (cell.speculation, ALONE.speculation))
        if not lossless.comparable(engine.rule, sampling):
            return check_row(self.bench, lossless.Check(comparable=False))
        check = lossless.parting(expected, row["token_ids"])
        if not isinstance(check, lossless.Check):  # many cells part at the same place
            place = row["request"], check, row["token_ids"][check]
            if place not in self._checks:
                found = lossless.compare(plain.target, asked.request.prompt, expected, row["token_ids"], sampling)
                self._checks[place] = found
            check = self._checks[place]
        return check_row(self.bench, check)
