"""`specdec run from=DIR`: a finished run once more, in a folder of its own, and whether it came out the same."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from specdec.experiments.records import write_text
from specdec.experiments.report.run_files import RunFiles, read_run
from specdec.experiments.reproduction import compare, sentences
from specdec.experiments.resume import key_of
from specdec.experiments.run import run
from specdec.experiments.trust import as_overrides, refuse, runs_code

FROM, INTO = "from=", "hydra.run.dir="
FILE = "reproduction.json"


def repeat(arguments: Sequence[str], console: Console) -> tuple[dict[str, Any], bool]:
    """Run what was run in DIR, by its config.yaml and not by the settings' present defaults.

    Args:
        arguments: `from=DIR`, and `hydra.run.dir=` if the new folder is not to be outputs/<name>/<time>. The folder of
            a repeat that was stopped goes on. Settings of DIR that can run code are given again, see trust.py.

    Returns:
        The new run's summary, and whether all texts and accepted lengths are those of DIR.

    Raises:
        ValueError: there is no finished run in DIR, something else is asked for, DIR's settings can run code and were
            not given again, or the run cannot be built here.
        KeyboardInterrupt: stopped; its text says how to go on.
    """
    source = Path(_last(arguments, FROM)).expanduser()
    others = [a for a in arguments if not a.startswith((FROM, INTO))]
    before = _finished(source)
    trusted = runs_code(before.config)
    if strange := [a for a in others if key_of(a) not in trusted]:
        raise ValueError(
            f"from= repeats a run as it was: {', '.join(strange)} cannot be given with it, only {INTO}FOLDER"
        )
    given_again = {key_of(a): a for a in others}
    refuse("from", source, as_overrides({key: value for key, value in trusted.items() if key not in given_again}))
    for key, override in given_again.items():
        _set(before.config, key, yaml.safe_load(override.partition("=")[2]))
    if before.config.get("scaling"):
        raise ValueError(f"{source} timed steps and wrote no text: times cannot be equal; run experiment=scaling again")
    if before.config.get("load"):
        raise ValueError(f"{source} compared its texts itself, and times cannot be equal; run experiment=load again")
    name = str(before.config.get("name", "run"))
    given = _last(arguments, INTO)
    folder = Path(given).expanduser() if given else Path("outputs", name, f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    if folder.resolve() == source.resolve():
        raise ValueError(f"from= and {INTO} are the same folder, {folder}; give another one")
    overrides = yaml.safe_load((source / "overrides.yaml").read_text(encoding="utf-8"))
    try:
        summary = run(before.config, folder, overrides, console)
    except KeyboardInterrupt:
        again = " ".join([f"{FROM}{source}", f"{INTO}{folder}", *others])
        raise KeyboardInterrupt(f"stopped; go on with: specdec run {again}") from None
    found = {"from": str(source), **compare(before, read_run(folder))}
    write_text(folder / FILE, json.dumps(found, indent=1) + "\n")
    for sentence in sentences(found):
        console.print(sentence, highlight=False, markup=False)
    return summary, found["reproduced"]


def _last(arguments: Sequence[str], key: str) -> str:
    """What was given for `key`, as Hydra takes it: quotes around it are not part of it."""
    given = [a.removeprefix(key) for a in arguments if a.startswith(key)]
    return re.sub(r"^(['\"])(.*)\1$", r"\2", given[-1]) if given else ""


def _set(config: Any, name: str, value: Any) -> None:
    """Put a value in a setting's place, by its full name."""
    *path, last = [int(part) if part.isdigit() else part for part in name.split(".")]
    for part in path:
        config = config[part]
    config[last] = value


def _finished(source: Path) -> RunFiles:
    for file in ("config.yaml", "overrides.yaml"):
        if not (source / file).is_file():
            raise ValueError(f"from: {str(source)!r} is not the directory of a run; expected one with {file}")
    if not (source / "summary.json").is_file():
        raise ValueError(f"from: the run in {str(source)!r} is not finished; go on with: specdec run resume={source}")
    return read_run(source)
