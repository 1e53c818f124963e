"""The time line obeys the Trace Event Format: what is asserted here is what its description asks for."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from specdec.experiments.trace.perfetto import write_perfetto
from specdec.experiments.trace.record import Trace

from .made import made_trace, real_trace

METADATA = {"process_name": "name", "process_sort_index": "sort_index", "thread_name": "name"}


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return [real_trace(), made_trace(12, 9, method="other")]


@pytest.fixture(scope="module")
def line(traces: list[Trace], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("line") / "trace.perfetto.json"
    write_perfetto(file, traces)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads(file.read_text(), parse_constant=refuse)
    return found


def chosen(line: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [event for event in line["traceEvents"] if wanted.items() <= event.items()]


def test_every_event_has_the_fields_of_its_kind(line: dict[str, Any]) -> None:
    assert line["displayTimeUnit"] in ("ms", "ns")
    for event in line["traceEvents"]:
        assert type(event["pid"]) is type(event["tid"]) is int
        assert event["name"]
        assert isinstance(event["args"], dict)
        match event["ph"]:
            case "M":
                assert METADATA[event["name"]] in event["args"]
            case "X":
                assert event["cat"]
                assert isinstance(event["ts"], int | float)
                assert event["ts"] >= 0
                assert isinstance(event["dur"], int | float)
                assert event["dur"] >= 0
            case "C":
                assert isinstance(event["ts"], int | float)
                assert all(isinstance(value, int | float) for value in event["args"].values())
            case other:
                raise AssertionError(f"{other} is not used here")


def test_spans_of_a_thread_nest_or_follow_each_other(line: dict[str, Any]) -> None:
    for process in (1, 2):
        steps = chosen(line, ph="X", pid=process, cat="step")
        outside = [*chosen(line, pid=process, name="prefill"), *steps]
        for before, after in pairwise(outside):
            assert before["ts"] + before["dur"] <= after["ts"]
        phases = chosen(line, ph="X", pid=process, cat="phase")[1:]
        assert len(phases) == 5 * len(steps)
        for number, step in enumerate(steps):
            own = phases[5 * number : 5 * number + 5]
            assert [phase["name"] for phase in own] == ["draft", "verify", "accept", "commit", "draft"]
            assert own[0]["ts"] == step["ts"]
            assert own[-1]["ts"] + own[-1]["dur"] == pytest.approx(step["ts"] + step["dur"], abs=1e-3)
            for before, after in pairwise(own):
                assert before["ts"] + before["dur"] == pytest.approx(after["ts"], abs=1e-3)


def test_it_says_what_happened(line: dict[str, Any], traces: list[Trace]) -> None:
    for process, trace in enumerate(traces, 1):
        assert chosen(line, pid=process, name="process_name")[0]["args"] == {"name": trace.method}
        assert chosen(line, pid=process, name="prefill")[0]["dur"] == pytest.approx(1e6 * trace.prefill, abs=1e-3)
        accepted, sizes = (chosen(line, ph="C", pid=process, name=n) for n in ("accepted tokens", "tree size"))
        assert [event["args"]["accepted tokens"] for event in accepted] == [len(step.drafted) for step in trace.steps]
        assert [event["args"]["tree size"] for event in sizes] == [len(step.tokens) for step in trace.steps]
        for number, step in enumerate(trace.steps, 1):
            (event,) = chosen(line, pid=process, name=f"step {number}")
            assert event["ts"] == pytest.approx(1e6 * step.spans[0].begin, abs=1e-3)
            assert event["args"]["emitted"] == step.kept
            assert (event["args"]["accepted"], event["args"]["own"]) == trace.pieces[number]
        verify = chosen(line, pid=process, name="verify")
        rows = [len(step.tokens) + len(step.rider_tokens) for step in trace.steps]
        assert [event["args"]["rows"] for event in verify] == rows
