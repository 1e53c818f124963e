"""`specdec run experiment=load`: requests under load, in the usual folder."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from specdec import registry
from specdec.experiments import display, provenance
from specdec.experiments.config import RunConfig
from specdec.experiments.data import Questions
from specdec.experiments.folder_lock import only_writer
from specdec.experiments.load.measure import Load
from specdec.experiments.load.methods import by_speculation, configured, with_curve
from specdec.experiments.load.metrics import definitions
from specdec.experiments.load.records import CellRecords
from specdec.experiments.load.requests import make_requests
from specdec.experiments.load.settings import SPECULATION, Settings
from specdec.experiments.load.shown import flat, show_load, table
from specdec.experiments.load.summary import cell_entries, method_entries, totals
from specdec.experiments.machine_file import MEASURE
from specdec.experiments.measured_curve import write_curve
from specdec.experiments.methods import other_backend
from specdec.experiments.records import Row, write_text
from specdec.experiments.report import write_report
from specdec.experiments.run_folder import begin, look_into
from specdec.experiments.summary import without_nan
from specdec.experiments.trackers.base import Guarded
from specdec.experiments.workbench import Bench, build

Json = dict[str, Any]
OTHERS = ("methods", "only", "predict", "stream", "trace", "transformers_batch", "grid", "machine", "scaling")
ADAPTIVE = SPECULATION[2]


def run_load(raw: Mapping[str, Any], directory: Path, overrides: Sequence[str], console: Console) -> Json:
    """Serve requests under load, report; returns the summary. See `run`.

    Raises:
        ValueError: something is wrong with the configuration, the data, or a model, or another process writes in
            `directory`.
    """
    settings = Settings.parse(raw["load"])
    if given := [name for name in OTHERS if raw.get(name)]:
        raise ValueError(f"load compares speculation off, on and adaptive, of one drafter: take {', '.join(given)} out")
    if other_backend(raw.get("backend"), tuple(raw.get("allow_targets") or ())):
        raise ValueError("load runs on specdec itself: take backend out")
    config = configured(raw, settings)
    if config.measure.batch > 1 or config.measure.noise:
        raise ValueError("load serves as many at once as load.concurrency says: take measure.batch and noise out")
    questions: Questions = registry.instantiate(config.data, config.allow_targets, "data")
    tracker = Guarded(registry.instantiate(config.tracker, config.allow_targets, "tracker"))
    if (earlier := look_into(directory, raw)) is not None:
        console.print(f"{directory} is finished already: nothing to run")
        if not (directory / "report.html").exists():
            write_report(directory)
        return earlier
    if config.measure.threads:
        torch.set_num_threads(config.measure.threads)
    transformers_logging.disable_progress_bar()
    console.print(f"Loading target [bold]{config.target['name']}[/]", highlight=False)
    with closing(build(config)) as bench:
        directory.mkdir(parents=True, exist_ok=True)
        with only_writer(directory):
            begin(directory, raw, overrides)
            about = {"name": questions.name, "sha256": questions.sha256, "count": len(questions.items)}
            origin = provenance.collect(provenance.command_line(), dict(raw), about)
            provenance.write(directory / "provenance.json", origin)
            return _write(raw, config, settings, bench, questions, tracker, directory, console)


def _write(
    raw: Mapping[str, Any],
    config: RunConfig,
    settings: Settings,
    bench: Bench,
    questions: Questions,
    tracker: Guarded,
    directory: Path,
    console: Console,
) -> Json:
    """Measure and report."""
    methods, measure, allowed = by_speculation(config, settings), config.measure, config.allow_targets
    sampling = config.methods[0].sampling
    asked = make_requests(bench, questions.items, settings, measure.max_new_tokens, sampling, measure.seed)
    if ADAPTIVE in methods and settings.curve == MEASURE:
        console.print(f"Measuring what steps cost, for adaptive: {settings.curve_seconds:g} s", highlight=False)
        texts = [each.request.prompt for each in asked]
        context = round(statistics.mean(len(e.request.prompt) + e.request.max_new_tokens / 2 for e in asked))
        around = methods[SPECULATION[1]] if SPECULATION[1] in methods else _inner(methods[ADAPTIVE])
        file = write_curve(bench, around, texts, context, settings.curve_seconds, directory)
        methods[ADAPTIVE] = with_curve(methods[ADAPTIVE], file)
    records = CellRecords(directory)
    tracker.start(directory, config.name, raw)
    load = Load(bench, methods, settings, asked, records, measure, lambda cell, rows: None, config.compile)
    seconds = load.warm_up()
    console.print(f"Warm-up: every method once, {seconds:.1f} s, not counted", highlight=False)
    if records.cells:
        console.print(f"Going on: {len(records.cells)} of {load.total} cells were served before", highlight=False)
    with display.Bar(console, load.total, "Measuring") as bar:
        served, before = 0, len(records.cells)

        def tell(cell: Row, rows: list[Row]) -> None:
            nonlocal served
            served += 1
            if served > before:
                rate = sum(row["new_tokens"] for row in rows) / cell["seconds"]
                tracker.log({f"{cell['cell']}/throughput": rate}, served)
            bar.advance(cell["cell"])

        load.tell = tell
        load.run()
    summary = _summary(config, settings, load, allowed)
    write_text(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
    show_load(console, summary)
    display.show_notes(console, summary["notes"])
    console.print(f"Report: {write_report(directory)}", highlight=False, soft_wrap=True)
    tracker.table("load", *table(summary))
    tracker.images(lambda: _draw(summary, directory))
    tracker.artifact("run", directory)
    tracker.finish(flat(summary))
    return summary


def _draw(summary: Json, directory: Path) -> Mapping[str, Path]:
    from specdec.experiments.figures import draw_load  # matplotlib, which not every tracker wants

    return draw_load(summary, directory / "figures")


def _inner(adaptive: Any) -> Any:
    """The drafter that adaptive goes around, by itself."""
    return replace(adaptive, name="on", drafter=adaptive.drafter["drafter"])


def _summary(config: RunConfig, settings: Settings, load: Load, allowed: tuple[str, ...]) -> Json:
    records, seed, bounds = load.records, config.measure.seed, load.bounds()
    served, questions = totals(records)
    complete = len(records.cells) == load.total
    notes = []
    if not complete:
        notes.append(
            f"{len(records.cells)} of {load.total} cells were served before the time limit of "
            f"{config.measure.time_limit} s; measure.time_limit=null serves all"
        )
    if len(questions) < len(load.asked):
        notes.append(
            f"there are {len(questions)} prompts for cells of up to {len(load.asked)} requests: they come again, which "
            "drafters that remember texts, and pages that are shared, make use of"
        )
    if told := [method.name for method in load.methods.values() if method.synthetic]:
        notes.append(
            f"synthetic: the drafter of {' and '.join(told)} is told the text; ratios say what steps cost, no more"
        )
    if cut := sum(each.cut > 0 for each in load.asked):
        notes.append(f"prompts longer than the target's positions were cut from the left: {cut}")
    return without_nan(
        {
            "experiment": config.name,
            "complete": complete,
            "questions": len(questions),
            "requests": served,
            "notes": notes,
            "target": load.bench.describe(config.target["name"], config.target.get("quantize")),
            "environment": {"peak_bandwidth": None, "threads": torch.get_num_threads(), "machine": None},
            "baseline": config.methods[0].name,
            "methods": method_entries(records, load.methods, settings.slots_needed, allowed),
            "prediction": None,
            "scaling": None,
            "load": {
                "bounds": bounds,
                "capacity": load.capacity(),
                "curve": settings.curve,
                "output_tokens": [min(t := [e.request.max_new_tokens for e in load.asked]), max(t)],
                "rounds": config.measure.repeats,
                "cells": cell_entries(settings, records, load.methods, bounds, allowed, seed),
            },
            "definitions": definitions(),
        }
    )
