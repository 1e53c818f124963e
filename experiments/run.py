"""`specdec run`: validate, build, warm up, measure, report. Everything ends up in one directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from specdec import metrics, registry
from specdec.experiments import display, grid, machine, provenance, roofline
from specdec.experiments.acceptance_shown import says_more, show_acceptance
from specdec.experiments.acceptance_tables import write_vectors
from specdec.experiments.answers import write_answers
from specdec.experiments.config import RunConfig
from specdec.experiments.data import Questions
from specdec.experiments.divergence import show_differences
from specdec.experiments.folder_lock import only_writer
from specdec.experiments.held import given_machine, machine_of, roofline_of
from specdec.experiments.leaderboard import is_compared, show_leaderboard, write_leaderboard
from specdec.experiments.load.command import run_load
from specdec.experiments.machine_file import Machine
from specdec.experiments.measure import measure, plan, warm_up
from specdec.experiments.measured_curve import with_measured_curve
from specdec.experiments.predict import prediction
from specdec.experiments.prediction_shown import show_prediction
from specdec.experiments.records import Records, write_lines, write_text
from specdec.experiments.report import write_report
from specdec.experiments.roofline_table import show_roofline
from specdec.experiments.run_folder import begin, look_into
from specdec.experiments.scaling.command import run_scaling
from specdec.experiments.step_times import DEFINITIONS, step_times
from specdec.experiments.summary import differences_of, mixed, summarise, without_nan
from specdec.experiments.trace import trace_run
from specdec.experiments.trackers.base import Guarded
from specdec.experiments.tracking import track_request, track_summary
from specdec.experiments.transformers_batch import compare_batches
from specdec.experiments.workbench import Bench, build


def run(raw: Mapping[str, Any], directory: Path, overrides: Sequence[str], console: Console) -> dict[str, Any]:
    """Run an experiment, or go on with the one in `directory`; returns the summary.

    Args:
        raw: the resolved configuration, see conf/run.yaml.
        overrides: what was asked for on the command line.

    Raises:
        ValueError: something is wrong with the configuration, the data, a model, or what is in `directory`; or another
            process writes there.
    """
    if raw.get("scaling") is not None:
        return run_scaling(raw, directory, overrides, console)
    if raw.get("load") is not None:
        return run_load(raw, directory, overrides, console)
    config = RunConfig.parse(raw)
    questions: Questions = registry.instantiate(config.data, config.allow_targets, "data")
    tracker = Guarded(registry.instantiate(config.tracker, config.allow_targets, "tracker"))
    if (earlier := look_into(directory, raw)) is not None:
        console.print(f"{directory} is finished already: nothing to run")
        if not (directory / "report.html").exists():  # stopped before it was written
            write_report(directory)
        return earlier
    grid.check_counts([method.place for method in config.methods], len(questions.items))
    given_machine(config)
    if config.measure.threads:
        torch.set_num_threads(config.measure.threads)
    transformers_logging.disable_progress_bar()
    console.print(f"Loading target [bold]{config.target['name']}[/] and {len(config.methods)} methods", highlight=False)
    with closing(build(config)) as bench:
        room = bench.room(config.measure.max_new_tokens)
        for setting, tokens in (("measure.warmup_tokens", config.measure.warmup_tokens), ("stream", config.stream)):
            bench.room(tokens or 0, setting)
        grid.check_contexts([method.place for method in config.methods], room, config.measure.max_new_tokens)
        directory.mkdir(parents=True, exist_ok=True)  # a run that cannot be built leaves nothing
        with only_writer(directory):
            if (earlier := look_into(directory, raw)) is not None:  # by another, while the weights were loaded
                console.print(f"{directory} was finished by another process: nothing to run")
                return earlier
            begin(directory, raw, overrides)
            return _write(config, bench, questions, tracker, directory, console)


def _write(
    config: RunConfig, bench: Bench, questions: Questions, tracker: Guarded, directory: Path, console: Console
) -> dict[str, Any]:
    """Warm up, measure and report."""
    raw = config.resolved
    records = Records(directory)
    about = {"name": questions.name, "sha256": questions.sha256, "count": len(questions.items)}
    origin = provenance.collect(provenance.command_line(), raw, about)
    origin["versions"] |= bench.versions
    provenance.write(directory / "provenance.json", origin)
    spent = warm_up(bench, questions.items, config.measure.warmup_tokens)
    bandwidth = machine.peak_bandwidth(bench.device)
    roofs = machine_of(config, bench, directory)
    held = None if roofs is None else roofline_of(config, bench, questions, roofs)
    if config.stream and not records.resumed:
        shown = next(method for method in reversed(config.methods) if not method.is_again and method.backend is None)
        display.show_stream(console, bench, shown, questions.items[0].turns[0], config.stream)
    tracker.start(directory, config.name, raw)
    if config.predict:
        prompts, tokens = [question.turns[0] for question in questions.items], config.measure.max_new_tokens
        measured = with_measured_curve(config.predict, bench, config.methods, prompts, tokens, directory)
        config = replace(config, predict=measured)
    total = _measure(config, bench, questions, records, tracker, console)
    for file in trace_run(config, bench, questions.items[0], records, directory) if config.trace else []:
        console.print(f"Trace: {file}", highlight=False, soft_wrap=True)
    theirs = _transformers(config, bench, questions, directory, console) if config.transformers_batch else None
    summary = _summary(config, bench, questions, records, bandwidth, roofs, held, total) | {"transformers": theirs}
    summary["environment"]["warm_up"] = spent
    _add_step_times(summary, directory / "steps.jsonl")
    vectors = write_vectors(directory, config.target["name"], summary["methods"], list(records.finished.values()))
    write_answers(directory / "answers", config.target["name"], list(records.finished.values()))
    board = write_leaderboard(directory, summary) if is_compared(summary) else None
    write_text(directory / "summary.json", json.dumps(summary, indent=1) + "\n")  # a run that has it is finished
    display.show_table(console, summary)
    if roofs is not None:
        show_roofline(console, summary)
    if board is not None:
        show_leaderboard(console, summary)
        console.print(f"Leaderboard: {board}", highlight=False, soft_wrap=True)
    if says_more(summary):
        show_acceptance(console, summary)
        console.print(f"For tree=sequoia: {vectors / 'METHOD.json'}", highlight=False, soft_wrap=True)
    if summary["prediction"]:
        show_prediction(console, summary["prediction"])
    if theirs or any(entry["lossless"]["verdict"] == "no" for entry in summary["methods"]):
        show_differences(console, summary)
    display.show_notes(console, summary["notes"])
    report = write_report(directory)
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    track_summary(tracker, summary, list(records.finished.values()), directory)
    return summary


def _add_step_times(summary: dict[str, Any], file: Path) -> None:
    found = step_times(file)
    for entry in summary["methods"]:
        entry["metrics"]["step_time"] = without_nan(found.get(entry["name"]) or metrics.quantiles([]))
    summary["definitions"] |= DEFINITIONS


def _measure(
    config: RunConfig, bench: Bench, questions: Questions, records: Records, tracker: Guarded, console: Console
) -> int:
    """Returns how many requests there are to be."""
    total = sum(len(cell.questions) for cell in plan(config.methods, questions.items, config.measure))
    if records.resumed:
        console.print(f"Going on: {records.resumed} of {total} requests were served before", highlight=False)
    with display.Bar(console, total, "Measuring") as bar:
        served = 0

        def tell(cell: Any, row: dict[str, Any]) -> None:
            nonlocal served
            served += 1
            if served > records.resumed:
                track_request(tracker, row, served)
            bar.advance(f"method {cell.method.name}")

        measure(bench, questions.items, config.measure, records, tell)
    return total


def _transformers(
    config: RunConfig, bench: Bench, questions: Questions, directory: Path, console: Console
) -> dict[str, Any]:
    """What batching does to transformers' own texts; every one is in transformers.jsonl."""
    batch = min(config.transformers_batch or 0, len(questions.items))
    with display.Bar(console, len(questions.items), "transformers, alone and together") as bar:
        rows = compare_batches(bench, questions.items, batch, config.measure.max_new_tokens, bar.advance)
    write_lines(directory / "transformers.jsonl", rows)
    return without_nan({"batch": batch, **differences_of(rows)})


def _summary(
    config: RunConfig,
    bench: Bench,
    questions: Questions,
    records: Records,
    bandwidth: float,
    roofs: Machine | None,
    held: roofline.Roofline | None,
    total: int,
) -> dict[str, Any]:
    rows = list(records.finished.values())
    cut = {r["question_id"] for r in rows if r["cut_tokens"]}
    notes = []
    if len(rows) < total:
        limit = f"the time limit of {config.measure.time_limit} s"
        notes.append(f"{len(rows)} of {total} requests were served before {limit}; measure.time_limit=null serves all")
    notes += grid.lacking([method.place for method in config.methods if not method.is_plain])
    if cut:
        notes.append(f"prompts longer than the target's positions were cut from the left: {len(cut)}")
    notes += mixed(rows)
    notes += [f"{m.name}: {m.draft.note}" for m in config.methods if m.draft and m.draft.note]
    seed, allowed = config.measure.seed, config.allow_targets
    methods = summarise(config.methods, rows, bench.cost, bandwidth, allowed, seed, held)
    predicted = (config.methods, bench.shapes, methods, rows, records.directory)
    expected = prediction(config.predict, *predicted) if config.predict else None
    if config.predict and expected is None:
        notes.append(
            f"predict: {config.predict.acceptance} has drafted nothing, so that nothing can be predicted by it"
        )
    return without_nan(
        {
            "experiment": config.name,
            "complete": len(rows) == total,
            "questions": len({r["question_id"] for r in rows}),
            "requests": len(rows),
            "notes": notes,
            "target": bench.describe(config.target["name"], config.target.get("quantize")),
            "environment": {
                "peak_bandwidth": bandwidth,
                "threads": torch.get_num_threads(),
                "machine": None if roofs is None else asdict(roofs),
            },
            "baseline": config.methods[0].name,
            "methods": methods,
            "prediction": expected,
            "scaling": None,
            "definitions": metrics.definitions() | (roofline.PARTS if roofs is not None else {}),
        }
    )
