"""What a run spends on anything but decoding, and how long the report of 100 000 steps takes. Times, shares and memory.

    python benchmarks/overhead.py --output benchmarks/results/cpu/overhead.json

First the same requests by turns, one at a time, with one thread of torch: decoded only, and as `specdec run` measures
them, with records, a live progress bar and a tracker (jsonl; wandb offline). A round is a pass over all requests each
way. `shares` are of a measured pass in CPU time, which other programs disturb least: each part is timed where it is
called; `threads` are those of the bar and of wandb, `processes` wandb's own, `rest` is what is in no other part:
prompts, rows, snapshots of counts. `check` compares texts with the baseline's, and runs the target where they differ.
`bookkeeping` is all but `decoding` and `check`. `ratio` is a measured pass without its checks over the pass that only
decodes. What a tracker does once, at the start and at the end of a run, is in seconds beside them.

Then `specdec report`, as a process of its own, on a run of at least 100 000 steps: the requests of a short real one,
repeated, written by the program's own records and summed up by its own run. `seconds` are of the wall; `cpu_seconds`,
which the goal is for, are what it takes with a core of its own. The last line of stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

import hydra
import psutil
import torch
from omegaconf import OmegaConf
from rich.console import Console

from specdec import DecodingStats, registry
from specdec.experiments import lossless, provenance
from specdec.experiments.config import RunConfig
from specdec.experiments.conversation import encode
from specdec.experiments.data import Questions
from specdec.experiments.display import Bar
from specdec.experiments.measure import Cell, measure, plan, warm_up
from specdec.experiments.records import Records, Row, key_of, read_lines, write_text
from specdec.experiments.run import run
from specdec.experiments.run_folder import begin
from specdec.experiments.trackers.base import Guarded
from specdec.experiments.tracking import track_request, track_summary
from specdec.experiments.workbench import Bench, build
from specdec.inputs import eos_ids
from specdec.request import Request

GOALS = {"bookkeeping": 0.02, "report_seconds": 20.0, "page_bytes": 3_000_000}
TRACKERS = ("jsonl", "wandb")
# `specdec report`, and what it took: a parent cannot tell its child's memory from its own
REPORT = """
import json, sys, time, torch
from specdec.experiments.cli import main
from specdec.experiments.machine import peak_memory
assert main(["report", sys.argv[1]]) == 0
print(json.dumps([time.process_time(), peak_memory(torch.device("cpu"))]))
"""


class Parts:
    """Seconds by part: of this thread on the CPU, and of the wall."""

    def __init__(self) -> None:
        self.cpu: Counter[str] = Counter()
        self.wall: Counter[str] = Counter()

    def timed(self, part: str, call: Callable[..., Any], *args: Any) -> Any:
        """A call, and its time added to a part. No part has another inside."""
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            return call(*args)
        finally:
            self.cpu[part] += time.thread_time() - cpu
            self.wall[part] += time.perf_counter() - wall


class TimedEngine:
    """An engine whose time counts as decoding."""

    def __init__(self, engine: Any, parts: Parts):
        self._engine, self._parts = engine, parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, *args: Any) -> Iterator[Any]:
        """As the engine's own."""
        steps = self._engine.run(*args)
        while (step := self._parts.timed("decoding", next, steps, None)) is not None:
            yield step


class TimedRecords(Records):
    """Records whose time counts as such."""

    def __init__(self, directory: Path, parts: Parts):
        super().__init__(directory)
        self._parts = parts

    def append(self, row: Row, steps: Sequence[Row]) -> None:
        """See Records."""
        self._parts.timed("records", super().append, row, steps)


def configuration(tracker: str, given: argparse.Namespace, **measured: int) -> dict[str, Any]:
    """Plain decoding and n-grams on the shipped prompts."""
    settings = {"max_new_tokens": given.tokens} | measured
    own = [f"target={given.target}", "drafter=ngram", f"tracker={tracker}", f"data.per_category={given.per_category}"]
    with hydra.initialize_config_module("specdec.conf", version_base="1.3"):
        composed = hydra.compose("run", own + [f"measure.{name}={value}" for name, value in settings.items()])
    raw = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items() if key != "experiment"}


def terminal(file: TextIO) -> Console:
    """One where progress is drawn."""
    return Console(force_terminal=True, file=file, width=100)


def seconds_now() -> Counter[str]:
    """Of the wall, and on the CPU: this thread, this process, and those that it started."""
    children = [each.cpu_times() for each in psutil.Process().children(recursive=True)]
    own = {"wall": time.perf_counter(), "thread": time.thread_time(), "process": time.process_time()}
    return Counter(own | {"processes": sum(times.user + times.system for times in children)})


def since(began: Counter[str]) -> dict[str, float]:
    """Seconds that have gone by."""
    now = seconds_now()
    return {name: now[name] - before for name, before in began.items()}


class Passes:
    """The requests of one configuration, decoded only or measured as a run does it."""

    def __init__(self, bench: Bench, questions: Questions, config: RunConfig, summary: dict[str, Any]):
        self._bench, self._questions, self._settings = bench, questions.items, config.measure
        self._cells = list(plan(config.methods, questions.items, config.measure))
        room = bench.room(config.measure.max_new_tokens)
        self._prompts = [encode(bench.tokenizer, cell.questions[0].turns, [], room)[0] for cell in self._cells]
        self._name, self._raw, self._summary = config.name, config.resolved, summary

    def decoding(self) -> dict[str, Any]:
        """Nothing is kept but the time."""
        began = seconds_now()
        for cell, prompt in zip(self._cells, self._prompts, strict=True):
            request = Request(prompt, self._settings.max_new_tokens, cell.sampling, eos_ids(self._bench.model))
            for _ in self._bench.engines[cell.method.name].run([request], DecodingStats()):
                pass
        spent = since(began)
        return {"wall": spent["wall"], "cpu": spent["process"]}

    def measured(self, tracker: str, directory: Path) -> dict[str, Any]:
        """With records, progress and a tracker; what the tracker does once is timed apart, by the wall."""
        parts = Parts()
        engines: Any = {name: TimedEngine(engine, parts) for name, engine in self._bench.engines.items()}
        bench, records = replace(self._bench, engines=engines), TimedRecords(directory, parts)
        guarded = Guarded(registry.build("tracker", tracker))
        stamps = [time.perf_counter()]
        guarded.start(directory, self._name, self._raw)
        stamps.append(time.perf_counter())
        with (
            open(os.devnull, "w") as nowhere,
            Bar(terminal(nowhere), len(self._cells), "Measuring") as bar,
            patch.object(lossless, "compare", partial(parts.timed, "check", lossless.compare)),
        ):

            def tell(cell: Cell, row: Row) -> None:
                parts.timed("tracker", track_request, guarded, row, len(records.finished))
                parts.timed("progress", bar.advance, cell.method.name)

            began = seconds_now()
            measure(bench, self._questions, self._settings, records, tell)
            spent = since(began)
        stamps.append(time.perf_counter())
        track_summary(guarded, self._summary, list(records.finished.values()), directory)
        stamps.append(time.perf_counter())
        if (wandb := sys.modules.get("wandb")) is not None:
            wandb.teardown()  # its process would be beside the next pass
        cpu = spent["process"] + spent["processes"]
        outside = {"threads": spent["process"] - spent["thread"], "processes": spent["processes"]}
        found = dict(parts.cpu) | outside | {"rest": spent["thread"] - parts.cpu.total()}
        return {
            "wall": spent["wall"] - parts.wall["check"],
            "cpu": cpu - parts.cpu["check"],
            "shares": {part: seconds / cpu for part, seconds in found.items()},
            "once": {"start": stamps[1] - stamps[0], "end": stamps[3] - stamps[2]},
        }


def overhead(source: Path, given: argparse.Namespace) -> dict[str, Any]:
    """By turns, each round in another order.

    Args:
        source: of a run with the same settings, which has its summary.
    """
    torch.set_num_threads(1)
    config = RunConfig.parse(configuration("noop", given))
    questions: Questions = registry.instantiate(config.data, (), "data")
    bench = build(config)
    warm_up(bench, questions.items, config.measure.max_new_tokens)
    passes = Passes(bench, questions, config, json.loads((source / "summary.json").read_text(encoding="utf-8")))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("decoding", *TRACKERS)}
    for number in range(given.rounds):
        for name in sorted(found, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(passes.decoding() if name == "decoding" else passes.measured(name, Path(folder)))
            print(f"round {number + 1}, {name}: {found[name][-1]['cpu']:.2f} s on the CPU", flush=True)
    plain = found.pop("decoding")
    seconds = {clock: spread([one[clock] for one in plain]) for clock in ("wall", "cpu")}
    return {"decoding_seconds": seconds, **{name: beside(one, plain) for name, one in found.items()}}


def beside(passes: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a tracker: shares, ratios within rounds, and what is once in a run."""
    shares = [one["shares"] for one in passes]
    bookkeeping = spread([1 - share["decoding"] - share.get("check", 0.0) for share in shares])
    ratios = {c: spread([one[c] / other[c] for one, other in zip(passes, plain, strict=True)]) for c in ("wall", "cpu")}
    return {
        "bookkeeping": bookkeeping,
        "reached": bookkeeping["median"] < GOALS["bookkeeping"],
        "shares": {part: spread([share.get(part, 0.0) for share in shares]) for part in shares[0]},
        "ratio": ratios,
        "once_seconds": {part: spread([one["once"][part] for one in passes]) for part in passes[0]["once"]},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def report(source: Path, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Write a run of `given.steps` steps at least, and time its report.

    Args:
        source: of a finished run of one repeat, whose rows are repeated.
    """
    rows, steps = read_lines(source / "requests.jsonl"), read_lines(source / "steps.jsonl")
    repeats = -(-given.steps // len(steps))
    raw = configuration("noop", given, repeats=repeats)
    folder.mkdir()
    begin(folder, raw, [])
    records, by_request = Records(folder), defaultdict(list)
    for step in steps:
        by_request[key_of(step)].append(step)
    for repeat in range(repeats):
        for row in rows:
            records.append(row | {"repeat": repeat}, [step | {"repeat": repeat} for step in by_request[key_of(row)]])
    with open(os.devnull, "w") as nowhere:
        summary = run(raw, folder, [], Console(file=nowhere))  # every request is there: it only sums them up
    assert summary["complete"]
    began = time.perf_counter()
    child = subprocess.run([sys.executable, "-c", REPORT, str(folder)], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    cpu_seconds, peak_memory = json.loads(child.stdout.splitlines()[-1])
    page = (folder / "report.html").stat().st_size
    return {
        "steps": repeats * len(steps),
        "requests": repeats * len(rows),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_memory": peak_memory,
        "page_bytes": page,
        "reached": cpu_seconds < GOALS["report_seconds"] and page < GOALS["page_bytes"],
    }


def main() -> None:
    """Both parts, and one JSON of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--target", default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-category", type=int, default=4, help="prompts of each category")
    parser.add_argument("--tokens", type=int, default=64, help="new ones of every answer")
    parser.add_argument("--steps", type=int, default=100_000, help="of the run that the report is of")
    given = parser.parse_args()
    settings = {**vars(given), "output": None, "goals": GOALS}
    result: dict[str, Any] = {"provenance": provenance.collect(provenance.command_line(), settings, {})}
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        source = Path(folder, "source")
        run(configuration("noop", given), source, [], Console(file=nowhere))
        about = json.loads((source / "provenance.json").read_text(encoding="utf-8"))
        result["provenance"]["data"] = about["data"]
        result["report"] = report(source, Path(folder, "many"), given)
        print(f"report of {result['report']['steps']} steps: {result['report']['seconds']:.1f} s", flush=True)
        result["overhead"] = overhead(source, given)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(given.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "provenance"}))


if __name__ == "__main__":
    main()
