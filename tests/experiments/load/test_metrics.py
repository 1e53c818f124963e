"""Metrics of a cell, by hand; what a watcher keeps; when requests come, and how much they write."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from specdec.experiments.load import metrics
from specdec.experiments.load.measure import Load
from specdec.experiments.load.requests import arrival_times, output_lengths
from specdec.experiments.load.serve import DECODE, READ, Watch, in_batches
from specdec.experiments.load.settings import ALONE, Cell, Settings
from specdec.experiments.load.shown import sentences
from specdec.metrics import DecodingStats
from specdec.request import Generation, Request
from specdec.request_stats import RequestStats
from specdec.turn import Turn

RAW: dict[str, Any] = {
    "concurrency": [4, 1],
    "rates": [0.5, 1.1],
    "capacity": None,
    "slots": 2,
    "speculation": ["off", "on", "adaptive"],
    "batching": ["in_flight", "static"],
    "requests": 3,
    "requests_per_slot": 2,
    "open_requests": 5,
    "output_tokens": [2, 9],
    "ignore_end": True,
    "ttft_bound": None,
    "tpot_bound": None,
    "curve": 0.02,
    "curve_seconds": 1,
    "memory": None,
    "page": None,
    "sharing": True,
}
# Three requests in two slots over 4 seconds: the second is preempted once, and read again.
ROWS: list[dict[str, Any]] = [
    {"ttft": 1.0, "tpot": 0.1, "queue": 0.0, "new_tokens": 10, "accept_lengths": [4, 4, 2], "steps": 3,
     "preemptions": 0,
     "visits": [[0, READ, 0.0, 1.0], [0, DECODE, 1.0, 2.0]]},
    {"ttft": 2.0, "tpot": 0.2, "queue": 0.5, "new_tokens": 11, "accept_lengths": [1] * 11, "steps": 11,
     "preemptions": 1,
     "visits": [[1, READ, 0.0, 1.0], [1, DECODE, 1.0, 2.0], [1, READ, 3.0, 3.5], [1, DECODE, 3.5, 4.0]]},
    {"ttft": 3.0, "tpot": 0.0, "queue": 1.5, "new_tokens": 1, "accept_lengths": [1], "steps": 1, "preemptions": 0,
     "visits": [[0, READ, 2.0, 3.0]]},
]  # fmt: skip
CELLS: list[dict[str, Any]] = [
    {"seconds": 3.0, "slots": 2, "pool": {"mean": 0.5, "max": 0.75, "pages": 8}},
    {"seconds": 1.0, "slots": 2, "pool": {"mean": 0.1, "max": 0.25, "pages": 8}},
]


def test_every_metric_by_hand() -> None:
    found = metrics.all_of(ROWS, CELLS, {"ttft": 2.0, "tpot": 0.15})
    assert found["ttft"] == pytest.approx({"p50": 2.0, "p90": 2.8, "p99": 2.98})
    assert found["tpot"] == pytest.approx({"p50": 0.15, "p90": 0.19, "p99": 0.199})  # not of a single token
    assert found["queue"] == pytest.approx({"p50": 0.5, "p90": 1.3, "p99": 1.48})
    assert found["throughput"] == 22 / 4
    assert found["request_rate"] == 3 / 4
    assert found["goodput"] == 1 / 4  # the second is too slow a token, the third comes too late
    assert found["mean_accepted_length"] == pytest.approx(22 / 15)
    assert found["slot_use"] == (2.0 + 3.0 + 1.0) / (2 * 4)
    assert found["pool_use"] == pytest.approx({"mean": (0.5 * 3 + 0.1) / 4, "max": 0.75})
    assert found["preemptions"] == 1
    assert list(metrics.definitions()) == list(found)
    assert all(len(words) > 30 for words in metrics.definitions().values())


@pytest.mark.parametrize("tpot", [0.0, math.nan])
def test_a_text_of_one_token_has_no_time_per_token_to_keep(tpot: float) -> None:
    rows = [ROWS[0], ROWS[2] | {"tpot": tpot}]
    assert metrics.goodput(rows, 4.0, {"ttft": 3.0, "tpot": 0.1}) == 2 / 4
    assert metrics.goodput(rows, 4.0, {"ttft": 2.0, "tpot": 0.1}) == 1 / 4
    assert metrics.goodput(rows, 4.0, {"ttft": 3.0, "tpot": 0.05}) == 1 / 4
    assert metrics.goodput(rows, 4.0, {"ttft": 3.0, "tpot": math.nan}) == 1 / 4
    assert metrics.tpot(rows)["p50"] == pytest.approx(0.1)
    assert math.isnan(metrics.tpot(rows[1:])["p50"])


def bounds(rows: list[dict[str, Any]], **given: float) -> dict[str, float]:
    """Of a run whose requests took that alone."""
    records: Any = SimpleNamespace(requests={(ALONE.name, 0): rows})
    nothing: Any = None
    return Load(nothing, {}, Settings.parse(RAW | given), [], records, nothing, lambda *_: None).bounds()


def test_bounds_are_of_texts_that_have_a_second_token() -> None:
    assert bounds(ROWS) == pytest.approx({"ttft": 10 * 2.0, "tpot": 3 * 0.15})
    assert bounds(ROWS, tpot_bound=0.5, ttft_bound=7) == {"ttft": 7.0, "tpot": 0.5}
    single = bounds(ROWS[2:])
    assert single["ttft"] == 30.0
    assert math.isnan(single["tpot"])


class Batches:
    """An engine whose requests take as many thousandths of a second as they want tokens."""

    def run(self, requests: list[Request], stats: DecodingStats) -> Iterator[tuple[Generation, list[int]]]:
        start = time.perf_counter()
        for index, request in enumerate(requests):
            took = request.max_new_tokens / 1000
            told = RequestStats(start=start, first=start + took / 2, end=start + took)
            stats.requests.append(told)
            yield Generation(index, request, [], told), [7] * request.max_new_tokens
        time.sleep(max(request.max_new_tokens for request in requests) / 1000)


def test_a_static_request_is_due_when_its_client_is_free() -> None:
    """Not when its batch begins: it waits for the longest of the batch before."""
    engine: Any = Batches()
    requests = [Request([1], count) for count in (2, 30, 4, 2, 3)]
    outcome = in_batches(engine, requests, 2)
    ends = [told.end for told in outcome.stats.requests]
    assert outcome.due == [outcome.began, outcome.began, *ends[:3]]
    waits = [told.start - due for told, due in zip(outcome.stats.requests, outcome.due, strict=True)]
    assert min(waits) >= 0
    assert waits[2] > 0.02  # the second one took 28 thousandths longer than the first
    assert [len(text) for text in outcome.texts] == [2, 30, 4, 2, 3]
    opened = in_batches(engine, requests, 2, gaps := [0.0, 0.001, 0.002, 0.003, 0.004])
    assert opened.due == [opened.began + gap for gap in gaps]


def test_a_dense_cache_has_no_pages() -> None:
    found = metrics.all_of(ROWS, [CELLS[0] | {"pool": None}], {"ttft": 9.0, "tpot": 9.0})
    assert all(math.isnan(value) for value in found["pool_use"].values())
    assert found["goodput"] == 1.0


def turn(seconds: float, held: int, *running: tuple[int, int, bool]) -> Turn:
    return Turn(seconds, held, 8, 0, running)


def test_a_watcher_keeps_slots_and_pages() -> None:
    """Number 0 is read for two seconds and decoded for one; number 1 is read, preempted, and read again elsewhere."""
    watch = Watch(2)
    watch(turn(10.0, 2, (0, 1, True)))
    watch(turn(11.0, 4, (0, 1, True), (1, 0, True)))
    watch(turn(12.0, 2, (0, 1, False)))
    watch(turn(13.0, 0))
    watch(turn(14.0, 6, (1, 1, True)))
    watch(turn(15.0, 6, (1, 1, False)))
    pool = watch.finish([12.5, 16.0], 16.0)
    assert watch.visits[0] == [(1, READ, 10.0, 12.0), (1, DECODE, 12.0, 12.5)]  # until its last token
    assert watch.visits[1] == [(0, READ, 11.0, 12.0), (1, READ, 14.0, 15.0), (1, DECODE, 15.0, 16.0)]
    assert pool == {"mean": (2 + 4 + 2 + 0 + 6 + 6) / 6 / 8, "max": 6 / 8, "pages": 8}


def test_gaps_are_the_same_for_every_rate() -> None:
    slow, fast = arrival_times(200, 0.5, 3, 0), arrival_times(200, 2.0, 3, 0)
    assert slow == pytest.approx([4 * time for time in fast])
    assert slow == arrival_times(200, 0.5, 3, 0)
    assert slow != arrival_times(200, 0.5, 3, 1)
    assert sorted(slow) == slow
    assert slow[0] > 0
    assert slow[-1] / 200 == pytest.approx(2.0, rel=0.2)  # the mean of 200 gaps


def test_lengths_are_drawn_and_do_not_depend_on_the_cells() -> None:
    settings = Settings.parse(RAW)
    assert settings.most == 8
    lengths = output_lengths(settings, 64, 1)
    assert min(lengths) >= 2
    assert max(lengths) <= 9
    assert len(set(lengths)) > 2
    assert lengths != output_lengths(settings, 64, 2)
    assert output_lengths(replace(settings, requests_per_slot=4), 64, 1)[:8] == lengths
    assert output_lengths(replace(settings, output_tokens=None), 64, 1) == [64] * 8


def test_the_plan_has_levels_together_and_turns_about() -> None:
    settings = Settings.parse(RAW | {"speculation": [False, True], "rates": [], "batching": ["static"]})
    assert settings.speculation == ("off", "on")  # as YAML may read them
    assert [(n, c.level, c.speculation) for n, c in settings.plan(2)] == [
        (0, 1, "off"), (0, 1, "on"), (0, 4, "off"), (0, 4, "on"),
        (1, 1, "on"), (1, 1, "off"), (1, 4, "on"), (1, 4, "off"),
    ]  # fmt: skip
    assert [settings.count(cell) for cell in settings.cells()] == [3, 3, 8, 8]
    names = [cell.name for cell in Settings.parse(RAW).cells()]
    assert len(set(names)) == len(names) == 4 * 6
    assert ALONE.name not in names


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"concurrency": [0]}, "load.concurrency is 0; expected a whole number of at least 1"),
        ({"concurrency": 4}, "load.concurrency is 4; expected a list"),
        ({"concurrency": [], "rates": []}, "neither concurrency nor rates"),
        ({"rates": [0]}, "load.rates is 0; expected a number above 0"),
        ({"speculation": ["maybe"]}, r"load.speculation is \['maybe'\]; expected some of off, on, adaptive"),
        ({"output_tokens": [9, 2]}, r"load.output_tokens is \[9, 2\]; expected \[least, most\]"),
        ({"ignore_end": 1}, "load.ignore_end is 1; expected true or false"),
        ({"ttft_bound": -1}, "load.ttft_bound is -1; expected a number above 0"),
        ({"memory": 2.0}, "load.memory is 2.0; expected bytes"),
        ({"page": 0}, "load.page is 0; expected an integer of at least 1"),
        ({"slotz": 3}, "Did you mean 'slots'"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.parse(RAW | wrong)


def test_missing_settings() -> None:
    with pytest.raises(ValueError, match="load has no page, sharing; begin with experiment=load"):
        Settings.parse({key: value for key, value in RAW.items() if key not in ("page", "sharing")})


def test_sentences_name_the_worst_of_adaptive() -> None:
    def over(ratio: float, other: str = "off") -> dict[str, Any]:
        return {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "rounds": 3, "other": other}

    def cell(level: int, speculation: str, **more: Any) -> dict[str, Any]:
        made = Cell("closed", level, speculation)
        about = {"loop": made.loop, "level": level, "speculation": speculation, "batching": made.batching}
        return about | {"over_off": None, "over_static": None, "over_better": None} | more

    cells = [
        cell(1, "off", over_static=over(1.0)),
        cell(1, "on", over_off=over(2.0)),
        cell(8, "on", over_off=over(0.8), over_static=over(1.5)),
        cell(1, "adaptive", over_better=over(1.02, "on")),
        cell(8, "adaptive", over_better=over(0.98)),
    ]
    assert sentences({"load": {"cells": cells}}) == [
        "In flight against static batching, closed loop: at most 1.50× [1.40, 1.60] the tokens per second (8 at once, "
        "speculation on).",
        "Speculation on against off: 2.00× [1.90, 2.10] (1 at once) at best, 0.80× [0.70, 0.90] (8 at once) at worst.",
        "Adaptive against the better of off and on: 0.98× [0.88, 1.08] (8 at once) at worst, where the better one is "
        "off.",
    ]
    assert sentences({"load": {"cells": []}}) == []
