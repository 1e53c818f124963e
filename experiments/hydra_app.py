"""`specdec run`, `specdec train` and `specdec export` as Hydra apps, with mistakes told in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from specdec.experiments import sweep
from specdec.experiments.hydra_mistakes import check_flags, explain
from specdec.experiments.resume import MANY_FLAGS, PLAIN_FLAGS, SWEEP_DIR, key_of, of_hydra, quoted
from specdec.experiments.run_folder import check_writable, from_here
from specdec.experiments.trust import told_to_run

CONFIG = "specdec.conf"
MANY = "hydra.mode=MULTIRUN"
Job = Callable[[dict[str, Any], Path, list[str]], Any]
Errors = list[ValueError | OSError]  # of the jobs that ran in this process


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended.

    Attributes:
        unequal: methods that should have written the baseline's text and did not.
        missing: cells of a sweep that failed or did not come to their end.
    """

    unequal: tuple[str, ...] = ()
    missing: int = 0


def launch(command: str, arguments: list[str]) -> Outcome:
    """Compose the configuration of `command` and run its job, or its jobs (`-m`).

    Raises:
        ValueError: anything is wrong with what was asked for.
        KeyboardInterrupt: stopped; its text says how to go on.
    """
    experiment = next((a for a in arguments if a.startswith("experiment=")), "")
    if command == "train" and experiment and not experiment.startswith("experiment=train_"):
        raise ValueError(
            f"{experiment} trains nothing: start it with `specdec run`, or choose one of experiment=train_..."
        )
    check_flags(arguments)
    flags = {argument for argument in arguments if argument.startswith("-")}
    overrides = [argument for argument in arguments if argument not in PLAIN_FLAGS]
    many = bool(flags & MANY_FLAGS) or MANY in overrides
    errors: Errors = []
    job = _job_of(command, errors)
    with _command_line(f"specdec {command}", arguments):
        GlobalHydra.instance().clear()
        outcome = Outcome()
        try:
            if flags - PLAIN_FLAGS:  # --help, --cfg and their like
                hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG}", config_name=command)(job)()
            else:
                with hydra.initialize_config_module(CONFIG, version_base="1.3"):
                    app = GlobalHydra.instance().hydra
                    assert app is not None
                    if many and command == "run":
                        outcome = _sweep(app, overrides, job)
                    elif many:
                        app.multirun(command, job, [*overrides, MANY])
                    else:
                        outcome = _once(app, command, overrides, errors)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(explain(error, command, arguments)) from error
        except YAMLError as error:
            raise ValueError(f"a yaml that was asked for is not valid yaml: {' '.join(str(error).split())}") from error
        finally:
            GlobalHydra.instance().clear()
    if len(errors) > 1:
        raise ValueError(f"{len(errors)} jobs failed; the last: {errors[-1]}")
    if errors:
        raise errors[0]
    return outcome


def _once(app: Hydra, command: str, overrides: list[str], errors: Errors) -> Outcome:
    """One job, as `Hydra.run` does it with what was composed. Hydra makes the folder that it is told of before it calls
    us; a run's is made when it has something in it, so Hydra is told of the present one.
    """
    config = app.compose_config(command, overrides, RunMode.RUN)
    HydraConfig.instance().set_config(config)
    folder = from_here(Path(config.hydra.run.dir))
    with read_write(config.hydra.run):
        config.hydra.run.dir = "."
    unequal: list[str] = []

    def job(composed: DictConfig) -> None:
        summary = _job(TASKS[command], composed, command, folder, errors)
        if command == "run" and summary:
            unequal.extend(sweep.unequal(summary))

    callbacks = Callbacks(config)
    callbacks.on_run_start(config=config, config_name=command)
    done = run_job(job, config, "hydra.run.dir", None, HydraContext(app.config_loader, callbacks))
    callbacks.on_run_end(config=config, config_name=command, job_return=done)
    _ = done.return_value  # raises what the job raised
    return Outcome(tuple(unequal))


def _sweep(app: Hydra, overrides: list[str], job: Callable[[DictConfig], Any]) -> Outcome:
    """All cells, by Hydra's sweeper and launcher; then one table, and one report."""
    from rich.console import Console
    from rich.table import Table

    config = app.compose_config("run", overrides, RunMode.MULTIRUN)
    HydraConfig.instance().set_config(config)
    folder = from_here(Path(config.hydra.sweep.dir))
    task, own = (
        list(config.hydra.overrides.task),
        [o for o in overrides if of_hydra(o) and key_of(o) not in (SWEEP_DIR, "hydra.mode")],
    )
    planned = _planned(app, config, task)
    begun = sweep.begin(folder, task, own)
    plans = [[*plan["overrides"], *plan["hydra"]] for plan in sweep.plans_of(folder) or []]
    for plan in (plan for plan in plans if plan != [*task, *own]):  # those of earlier starts
        composed = app.compose_config("run", plan, RunMode.MULTIRUN)
        planned += _planned(app, composed, [override for override in plan if not of_hydra(override)])
    again = " ".join(dict.fromkeys([f"resume={folder}", *told_to_run([o for plan in plans for o in plan])]))
    try:
        app.multirun("run", job, [*overrides, MANY, f"{SWEEP_DIR}={quoted(folder)}"])
    except (HydraException, OmegaConfBaseException):
        sweep.discard(folder, begun)
        raise
    except KeyboardInterrupt:
        sweep.write_table(folder, sweep.cells(folder, planned))
        raise KeyboardInterrupt(f"stopped; go on with: specdec run -m {again}") from None
    except Exception as error:  # the launcher's own, as where one of its processes was killed
        told = " ".join(str(error).split())[:300]
        print(f"specdec: the sweep's launcher stopped, {type(error).__name__}: {told}", file=sys.stderr)
    rows = sweep.cells(folder, planned)
    sweep.write_table(folder, rows)
    console = Console(highlight=False)
    columns, lines = sweep.shown(rows)
    table = Table(*columns)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    if any(row.status in (sweep.DONE, sweep.LIMITED) for row in rows):
        from specdec.experiments.report.joint import write_joint

        written, _ = write_joint([folder], folder)
        console.print(f"All cells: {written[-1]}", soft_wrap=True)
    missing = sum(row.status in (sweep.FAILED, sweep.BEGUN, sweep.WAITING) for row in rows)
    if missing:
        told = f"specdec: {missing} of {len(rows)} cells failed or are not done; go on: specdec run -m {again}"
        print(told, file=sys.stderr)
    return Outcome(tuple(f"{name} ({row.cell})" for row in rows for name in row.unequal), missing)


def _planned(app: Hydra, config: DictConfig, task: list[str]) -> list[list[str]]:
    """Every cell's overrides, where they are known beforehand; a sweeper that searches chooses as it goes."""
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return []
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create(config_loader=app.config_loader).parse_overrides([*given, *task])
    return [cell for batch in BasicSweeper.split_arguments(parsed, None) for cell in batch]


def _run(raw: dict[str, Any], folder: Path, overrides: list[str]) -> dict[str, Any]:
    check_writable(folder)  # before torch is imported
    from rich.console import Console

    from specdec.experiments.run import run

    return run(raw, folder, overrides, Console(highlight=False))


def _train(raw: dict[str, Any], folder: Path, overrides: list[str]) -> None:
    from rich.console import Console

    from specdec.experiments.train import train

    train(raw, overrides, Console(highlight=False))


def _export(raw: dict[str, Any], folder: Path, overrides: list[str]) -> None:
    from specdec.experiments.export import export

    print(export(raw))


TASKS: dict[str, Job] = {"run": _run, "train": _train, "export": _export}


def _job_of(command: str, errors: Errors) -> Callable[[DictConfig], Any]:
    """What Hydra calls, in whatever process: a cell of a sweep, a job, or a run that its own command line began."""

    def job(config: DictConfig) -> Any:
        if command == "run" and HydraConfig.get().mode == RunMode.MULTIRUN:
            return _cell(config)
        folder = from_here(Path(HydraConfig.get().runtime.output_dir)) if command == "run" else Path()
        return _job(TASKS[command], config, command, folder, errors)

    return job


def _cell(config: DictConfig) -> float:
    job = HydraConfig.get()
    folder = from_here(Path(job.runtime.output_dir))
    overrides = list(job.overrides.task)
    raw = _plain(config)
    if "BasicLauncher" in job.launcher._target_:
        return sweep.run_cell(folder, overrides, lambda: _run(raw, folder, overrides))

    def task() -> dict[str, Any]:  # side by side, so each shows what it does in a file
        from rich.console import Console

        from specdec.experiments.run import run

        with (folder / sweep.LOG).open("a", encoding="utf-8") as log:
            return run(raw, folder, overrides, Console(highlight=False, file=log))

    with _command_line("specdec run", overrides):
        return sweep.run_cell(folder, overrides, task)


def _job(task: Job, config: DictConfig, command: str, folder: Path, errors: Errors) -> Any:
    job = HydraConfig.get()
    many, here = job.mode == RunMode.MULTIRUN, "BasicLauncher" in job.launcher._target_
    try:
        return task(_plain(config), folder, list(job.overrides.task))
    except KeyboardInterrupt:
        begun, asked = (folder / "overrides.yaml").is_file(), list(job.overrides.task)
        again = " ".join([f"resume={folder}", *told_to_run(asked)] if command == "run" and begun else asked)
        raise KeyboardInterrupt(f"stopped; go on with: specdec {command} {again}") from None
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and command == "run" and (folder / "overrides.yaml").is_file():
            error.add_note(f"nothing that was written is lost, go on with: specdec run resume={folder}")
        if not here:
            raise
        errors.append(error)  # Hydra would say more, and leave out the other jobs
        if many:
            print(f"specdec: job {job.job.num} failed: {' '.join(str(error).split())}", file=sys.stderr)
        return None


def _plain(config: DictConfig) -> dict[str, Any]:
    raw = OmegaConf.to_container(config, resolve=True)
    assert isinstance(raw, dict)
    raw.pop("experiment", None)
    return {str(key): value for key, value in raw.items()}


@contextmanager
def _command_line(program: str, arguments: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and raises what goes wrong only when it is told to; as found afterwards."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [program, *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
