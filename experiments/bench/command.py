"""`specdec bench PART name=value...`: reads the settings, runs the cells, shows and keeps the result."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specdec.experiments.bench import accepted, curve, machine, measure, ops, retrieval, rules, skip, step, tables
from specdec.experiments.bench.grid import Cell, cells, step_cells
from specdec.experiments.bench.inputs import Pools, make_inputs
from specdec.experiments.bench.plot import cost_curve, roofline
from specdec.experiments.bench.rates import Rates, measure_rates
from specdec.experiments.bench.results import Json, Results, load, write
from specdec.experiments.bench.rivals import methods
from specdec.experiments.bench.settings import Settings, from_named, read_settings
from specdec.experiments.bench.stand_ins import random_model
from specdec.experiments.bench.usage import USAGE
from specdec.registry import unknown

Work = Sequence[tuple[str, Callable[[], Json]]]


def bench(arguments: list[str]) -> None:
    """Run a part.

    Raises:
        ValueError: an unknown part, setting or value, or a result was wrong.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    part, rest = arguments[0], arguments[1:]
    parts: dict[str, Callable[[list[str]], None]] = {"kernels": _kernels, "ops": _ops, "step": _step}
    parts |= {"curve": _curve, "retrieval": _retrieval, "skip": _skip, "rules": _rules, "accepted": _accepted}
    parts |= {"table": _table, "machine": _machine}
    if part not in parts:
        raise unknown("benchmark", part, parts)
    parts[part](rest)


def run(settings: Settings, make_work: Callable[[Results], Work]) -> Results:
    """Do what is not done yet, until the time is up.

    Raises:
        ValueError: a result was wrong; everything else is measured and written all the same.
    """
    about = {field.name: str(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    results = Results(settings.output, about, torch.device(settings.device), settings.again)
    work = [(key, do) for key, do in make_work(results) if key not in results.cells]
    ends = time.monotonic() + 60 * settings.minutes
    with _progress() as progress:
        task = progress.add_task("", total=len(work))
        for left, (key, do) in zip(range(len(work), 0, -1), work, strict=True):
            if time.monotonic() > ends:
                print(
                    f"specdec bench: {left} cells left after {settings.minutes:g} minutes; run it again",
                    file=sys.stderr,
                )
                break
            progress.update(task, description=key)
            results.add(key, do())
            progress.advance(task)
    return results


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _rates(results: Results, device: torch.device) -> Rates | None:
    """What the machine can do now, which at an earlier start may have been something else."""
    rates = measure_rates(device)
    if rates:
        results.start(rates._asdict())
    return rates


def _refuse_wrong(results: Results) -> None:
    wrong = {key: entry["red"] for key, entry in results.cells.items() if entry["red"]}
    if wrong:
        key, names = next(iter(wrong.items()))
        raise ValueError(f"{len(wrong)} cells have wrong results and no times, the first: {', '.join(names)} in {key}")


def _kernels(arguments: list[str]) -> None:
    settings = read_settings(arguments, "kernels")
    device = torch.device(settings.device)
    pools = Pools(device)

    def make_work(results: Results) -> Work:
        rates = _rates(results, device)
        copy = rates.copy_bandwidth if rates else None

        def entry(cell: Cell) -> Json:
            if device.type == "cuda":
                torch.cuda.empty_cache()
            measured = measure.measure(make_inputs(cell, pools), methods(cell, device.type), settings.seconds, copy)
            return {"cell": cell.about, **measured}

        return [(cell.key, lambda cell=cell: entry(cell)) for cell in cells(settings.grid)]  # type: ignore[misc]

    results = run(settings, make_work)
    console = Console()
    console.print(tables.table(results.content, "tree attention"))
    if device.type == "cuda":
        console.print(tables.targets_table(results.content))
        roofline(results.content, settings.output.with_suffix(".png"))
    _finish(results)


def _ops(arguments: list[str]) -> None:
    settings = read_settings(arguments, "ops")
    device = torch.device(settings.device)

    def make_work(results: Results) -> Work:
        chosen = ops.op_cells(settings.grid != "full")
        return [(c.key, lambda c=c: ops.measure_op(c, device, settings.seconds)) for c in chosen]  # type: ignore[misc]

    results = run(settings, make_work)
    Console().print(tables.table(results.content, "small operations"))
    _finish(results)


def _step(arguments: list[str]) -> None:
    settings = read_settings(arguments, "step")
    device = torch.device(settings.device)

    def make_work(results: Results) -> Work:
        rates = _rates(results, device)
        model = random_model(settings.device)
        chosen = step_cells(settings.device)
        return [(c.key, lambda c=c: step.measure_step(model, c, rates)) for c in chosen]  # type: ignore[misc]

    results = run(settings, make_work)
    Console().print(tables.step_table(results.content))
    _finish(results)


def _curve(arguments: list[str]) -> None:
    settings = from_named(curve.Settings, arguments)
    measured = curve.measure_curve(settings)
    _keep(measured, settings.output, curve.show(measured))
    cost_curve(measured, Path(settings.output).with_suffix(".png"))
    _last(settings.output, cells=len(measured["nodes"]))


def _machine(arguments: list[str]) -> None:
    settings = from_named(machine.Settings, arguments)
    with _bar("streams and products"):
        measured = machine.measure_settings(settings)
    _keep(measured, settings.output, machine.show(measured))
    print(f"specdec run experiment=latency machine={settings.output}")
    _last(settings.output, products=len(measured["products"]))


def _retrieval(arguments: list[str]) -> None:
    settings = from_named(retrieval.Settings, arguments)
    with _bar("texts") as bar:
        measured = retrieval.measure_lookups(settings, lambda done, total: bar(completed=done, total=total))
    _keep(measured, settings.output, retrieval.show(measured))
    _last(settings.output, datastores=len(measured["datastores"]))


def _skip(arguments: list[str]) -> None:
    settings = from_named(skip.Settings, arguments)
    with _bar("sets of layers", settings.trials) as bar:
        measured = skip.measure_skip(
            settings, lambda done, best, score: bar(completed=done, description=f"best {score:.3f}")
        )
    _keep(measured, settings.output, skip.show(measured))
    members = ",".join(map(str, measured["skip"]))
    print(f"specdec run target.name={settings.target} drafter=early_exit 'drafter.skip=[{members}]'")
    _last(settings.output, **{name: measured[name] for name in ("skip", "matchness", "held_out")})


def _rules(arguments: list[str]) -> None:
    settings = from_named(rules.Settings, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _bar("") as bar:
        measured = rules.measure_rules(settings, device, lambda what: bar(description=what))
    _keep(measured, settings.output, rules.show(measured))
    _last(settings.output, rows=len(measured["rows"]))


def _accepted(arguments: list[str]) -> None:
    settings = from_named(accepted.Settings, arguments)
    with _bar("texts") as bar:
        measured = accepted.measure_accepted(settings, lambda done, total: bar(completed=done, total=total))
    _keep(measured, settings.output, accepted.show(measured))
    _last(settings.output, rows=len(measured["rows"]))


@contextmanager
def _bar(description: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """A part's progress; what it gives sets `completed`, `total` or `description`."""
    with _progress() as progress:
        yield partial(progress.update, progress.add_task(description, total=total))


def _keep(measured: Json, output: str, table: Table) -> None:
    """What was measured in one go into its file and onto the terminal."""
    write(measured, Path(output))
    Console().print(table)


def _last(output: str | Path, **told: object) -> None:
    """The last line of stdout."""
    print(json.dumps({"output": str(output), **told}))


def _finish(results: Results) -> None:
    _refuse_wrong(results)
    _last(results.file, cells=len(results.cells))


def _table(arguments: list[str]) -> None:
    gpu = [a.removeprefix("gpu=") for a in arguments if a.startswith("gpu=")]
    files = [Path(a) for a in arguments if not a.startswith("gpu=")]
    if len(files) != 2:
        raise ValueError("specdec bench table takes a result and a README, and gpu=FILE where there is one")
    tables.insert(files[1], tables.markdown(load(files[0]), load(Path(gpu[0])) if gpu else None))
