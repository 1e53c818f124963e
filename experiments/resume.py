"""What `resume=DIR` stands for, for a run and for a sweep."""

from __future__ import annotations

from pathlib import Path

import yaml

from specdec.experiments import sweep
from specdec.experiments.trust import refuse, told_to_run

SWEEP_DIR = "hydra.sweep.dir"
MANY_FLAGS = {"-m", "--multirun"}
PLAIN_FLAGS = {*MANY_FLAGS, "-r", "--run"}  # those of Hydra's that run something


def resumed(arguments: list[str]) -> list[str]:
    """`resume=DIR` as what Hydra understands: the run's own overrides and what else was given, in its own directory.

    A sweep has the cells that it had; it may go on with another launcher. What can run code is given again, see
    trust.py.

    Raises:
        ValueError: there is no run in DIR, something is given that would make a sweep another one, or something that
            can run code is not given again.
    """
    given = [a for a in arguments if a.startswith("resume=")]
    if not given:
        return arguments
    others = [a for a in arguments if not a.startswith("resume=")]
    folder = Path(given[-1].removeprefix("resume=")).expanduser()
    if (settings := sweep.settings_of(folder)) is not None:
        others = [a for a in others if a not in PLAIN_FLAGS]
        task, before = settings
        given_again, others = others, [a for a in others if a not in task]
        if strange := [a for a in others if not of_hydra(a)]:
            raise ValueError(
                f"resume: a sweep goes on with the settings it has, {', '.join(strange)} cannot be given; new cells "
                f"are added to its folder by specdec run -m ... {SWEEP_DIR}={folder}"
            )
        if any(key_of(a) == "hydra/launcher" for a in others):  # what was set of the other one goes with it
            before = [a for a in before if not key_of(a).startswith("hydra.launcher.")]
        own = [a for a in before if key_of(a) not in set(map(key_of, others))]
        refuse("resume", folder, [a for a in told_to_run([*task, *own]) if a not in given_again])
        return ["-m", *task, *own, *others, f"{SWEEP_DIR}={quoted(folder)}"]
    if not (folder / "overrides.yaml").is_file():
        raise ValueError(f"resume: {str(folder)!r} is not the directory of a run; expected one with overrides.yaml")
    before = yaml.safe_load((folder / "overrides.yaml").read_text(encoding="utf-8"))
    others = [a for a in others if a not in PLAIN_FLAGS]
    own = [a for a in before if key_of(a) not in set(map(key_of, others))]
    refuse("resume", folder, told_to_run(own))
    return [*own, *others, f"hydra.run.dir={quoted(folder)}"]


def key_of(override: str) -> str:
    """What an override is about: `+a.b=c` is about a.b."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def quoted(path: Path) -> str:
    """A path as a Hydra value, whatever is in it."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
