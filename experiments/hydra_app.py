"""`specdec run`, `specdec train` and `specdec export` as Hydra apps, with mistakes told in one line."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from specdec.registry import CONF

CONFIG_PATH = "pkg://specdec.conf"
LAUNCHERS = 'pip install "specdec[launchers]"'

_errors: list[ValueError] = []  # of the jobs that ran in this process
_unequal: list[str] = []  # methods of theirs whose losslessness check failed


def launch(command: str, arguments: list[str]) -> list[str]:
    """Compose the configuration of `command` and run its job, or its jobs (`-m`).

    Returns:
        Methods that should have written the baseline's text and did not. Jobs of a launcher that has processes of its
        own tell it in their summaries only.

    Raises:
        ValueError: anything is wrong with what was asked for.
        KeyboardInterrupt: stopped; its text says how to go on.
    """
    tasks: dict[str, Callable[[DictConfig], None]] = {"run": _run_job, "train": _train_job, "export": _export_job}
    experiment = next((a for a in arguments if a.startswith("experiment=")), "")
    if command == "train" and experiment and not experiment.startswith("experiment=train_"):
        raise ValueError(
            f"{experiment} trains nothing: start it with `specdec run`, or choose one of experiment=train_..."
        )
    with _command_line(f"specdec {command}", arguments):
        GlobalHydra.instance().clear()
        _errors.clear()
        _unequal.clear()
        try:
            hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name=command)(tasks[command])()
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(explain(error, command, arguments)) from error
        finally:
            GlobalHydra.instance().clear()
    if len(_errors) > 1:
        raise ValueError(f"{len(_errors)} jobs failed; the last: {_errors[-1]}")
    if _errors:
        raise _errors[0]
    return list(_unequal)


def resumed(arguments: list[str]) -> list[str]:
    """`resume=DIR` as what Hydra understands: the run's own overrides and what else was given, in its own directory.

    A sweep's overrides are replaced by what else was given: they multiply each other.

    Raises:
        ValueError: there is no run in DIR.
    """
    given = [a for a in arguments if a.startswith("resume=")]
    if not given:
        return arguments
    others = [a for a in arguments if not a.startswith("resume=")]
    folder = Path(given[-1].removeprefix("resume=")).expanduser()
    sweep = folder / "multirun.yaml"
    if sweep.is_file():
        before = yaml.safe_load(sweep.read_text(encoding="utf-8"))["hydra"]["overrides"]["task"]
        others = [a for a in others if a not in ("-m", "--multirun")]
        return ["-m", *(others or before), f"hydra.sweep.dir={_quoted(folder)}"]
    if not (folder / "overrides.yaml").is_file():
        raise ValueError(f"resume: {str(folder)!r} is not the directory of a run; expected one with overrides.yaml")
    before = yaml.safe_load((folder / "overrides.yaml").read_text(encoding="utf-8"))
    own = [a for a in before if _key(a) not in set(map(_key, others))]
    return [*own, *others, f"hydra.run.dir={_quoted(folder)}"]


def _key(override: str) -> str:
    """What an override is about: `+a.b=c` is about a.b."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def explain(error: Exception, command: str, arguments: Sequence[str] = ()) -> str:
    """One line for what Hydra says in several, with the names there are."""
    text = str(error)
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    missing = re.search(r"(?:Could not find|could not find|Could not load) '([^']+)'", text)
    options = re.search(r"Available options in '([^']+)':\s*(.*?)(?:\n\s*\n|Config search path|$)", text, re.DOTALL)
    if missing and options:
        group, _, name = missing[1].rpartition("/")
        known = sorted(options[2].split())
        return f"{group}={name} is not there.{_meant(name, known)} Known: {', '.join(known)}{_extra(group)}"
    if missing:
        return f"{missing[1]} is not there{_extra(missing[1])}"
    if key:
        full = re.search(r"full_key: (\S+)", text)
        name = full[1] if full and not key[0].startswith("Could") else key[1]
        known = _settings(command, arguments)
        if command == "run" and name.startswith("tree.") and not any(k.startswith("tree.") for k in known):
            return f"{name} is set, but no tree is chosen; give one as well, as in tree=chain"
        return f"unknown setting {name!r}.{_meant_setting(name, known)} See: specdec {command} --help"
    if isinstance(error, OverrideParseException) and not all(error.override.partition("=")):
        return f"{error.override!r} is no setting; settings are name=value without spaces, as in drafter=ngram"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Set the environment")]
    sweep = "; for a sweep add -m" if "Ambiguous value" in text else ""
    return " ".join(lines[:3]) + sweep


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _meant_setting(name: str, known: list[str]) -> str:
    """The setting of the same group that resembles it most; else one from anywhere; else what the group has."""
    group, _, last = name.rpartition(".")
    siblings = {full.rpartition(".")[2]: full for full in known if full.rpartition(".")[0] == group}
    anywhere = {full.rpartition(".")[2]: full for full in known}
    for lasts in (siblings, anywhere):
        if close := difflib.get_close_matches(last, lasts, n=1):
            return f" Did you mean {lasts[close[0]]!r}?"
    there = sorted(full for last, full in siblings.items() if last != "_target_")
    return f" Known: {', '.join(there)}." if group and there else ""


def _extra(group: str) -> str:
    return f"; Hydra's launchers are extra packages: {LAUNCHERS}" if group.startswith("hydra/launcher") else ""


def _settings(command: str, arguments: Sequence[str]) -> list[str]:
    """Every setting's full name under the groups that were chosen, for guesses at what was meant."""
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    chosen = [a for a in arguments if a.split("=")[0] in groups and "," not in a]  # not what a sweep goes through
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("specdec.conf", version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(command, chosen), resolve=False)

    def walk(node: object, prefix: str) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, Mapping) else ():
            yield f"{prefix}{key}"
            yield from walk(value, f"{prefix}{key}.")

    return list(walk(config, ""))


def _run_job(config: DictConfig) -> None:
    from rich.console import Console

    from specdec.experiments.run import run

    def task(raw: dict[str, Any], folder: Path, overrides: list[str]) -> None:
        summary = run(raw, folder, overrides, Console(highlight=False))
        _unequal.extend(m["name"] for m in summary["methods"] if m["lossless"]["verdict"] == "no")

    _job(task, config, "run")


def _train_job(config: DictConfig) -> None:
    from rich.console import Console

    from specdec.experiments.train import train

    _job(lambda raw, folder, overrides: train(raw, overrides, Console(highlight=False)), config, "train")


def _export_job(config: DictConfig) -> None:
    from specdec.experiments.export import export

    _job(lambda raw, folder, overrides: print(export(raw)), config, "export")


def _job(task: Callable[[dict[str, Any], Path, list[str]], object], config: DictConfig, command: str) -> None:
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    raw = OmegaConf.to_container(config, resolve=True)
    assert isinstance(raw, dict)
    raw.pop("experiment", None)
    sweep, here = job.mode == RunMode.MULTIRUN, "BasicLauncher" in job.launcher._target_
    try:
        task({str(k): v for k, v in raw.items()}, folder, list(job.overrides.task))
    except KeyboardInterrupt:
        again = f"resume={folder}" if command == "run" else " ".join(job.overrides.task)
        raise KeyboardInterrupt(f"stopped; go on with: specdec {command} {again}") from None
    except ValueError as error:
        if command == "run" and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if not here:
            raise
        _errors.append(error)  # Hydra would say more, and leave out the other jobs of a sweep
        if sweep:
            print(f"specdec: job {job.job.num} failed: {' '.join(str(error).split())}", file=sys.stderr)


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


def _quoted(path: Path) -> str:
    """A path as a Hydra value, whatever is in it."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
