"""What `resume=DIR` stands for, for a run and for a sweep."""

from __future__ import annotations

from pathlib import Path

from specdec.experiments import sweep
from specdec.experiments.read_back import read_yaml
from specdec.experiments.run_folder import LIMIT
from specdec.experiments.trust import refuse, told_to_run

SWEEP_DIR = "hydra.sweep.dir"
MANY_FLAGS = {"-m", "--multirun"}
PLAIN_FLAGS = {*MANY_FLAGS, "-r", "--run"}  # those of Hydra's that run something


def resumed(arguments: list[str]) -> list[list[str]]:
    """`resume=DIR` as what Hydra understands: the run's own overrides and what else was given, in its own directory; of
    a sweep every plan's, one after the other.

    A sweep has the cells that it had; it may go on with another launcher or time limit. What can run code is given
    again, see trust.py.

    Raises:
        ValueError: there is no run in DIR, something is given that would make a sweep another one, or something that
            can run code is not given again.
    """
    given = [a for a in arguments if a.startswith("resume=")]
    if not given:
        return [arguments]
    others = [a for a in arguments if not a.startswith("resume=") and a not in PLAIN_FLAGS]
    folder = Path(given[-1].removeprefix("resume=")).expanduser()
    if (plans := sweep.plans_of(folder)) is not None:
        return _plans(folder, plans, others)
    if not (folder / "overrides.yaml").is_file():
        raise ValueError(f"resume: {str(folder)!r} is not the directory of a run; expected one with overrides.yaml")
    before = read_yaml(folder / "overrides.yaml", list)
    own = _without(before, others)
    refuse("resume", folder, told_to_run(own))
    return [[*own, *others, f"hydra.run.dir={quoted(folder)}"]]


def _plans(folder: Path, plans: list[sweep.Plan], given: list[str]) -> list[list[str]]:
    """The arguments of each, with what was given for all of them."""
    known = [a for plan in plans for a in plan["overrides"]]
    new = [a for a in given if a not in known]
    if strange := [a for a in new if not of_hydra(a) and key_of(a) != LIMIT]:
        raise ValueError(
            f"resume: a sweep goes on with the settings it has, {', '.join(strange)} cannot be given; new cells "
            f"are added to its folder by specdec run -m ... {SWEEP_DIR}={folder}"
        )
    found = []
    for plan in plans:
        task, own = _without(plan["overrides"], new), plan["hydra"]
        if any(key_of(a) == "hydra/launcher" for a in new):  # what was set of the other one goes with it
            own = [a for a in own if not key_of(a).startswith("hydra.launcher.")]
        found.append([*task, *_without(own, new)])
    told = dict.fromkeys(told_to_run([a for plan in found for a in plan]))
    refuse("resume", folder, [a for a in told if a not in given])
    return [["-m", *before, *new, f"{SWEEP_DIR}={quoted(folder)}"] for before in found]


def _without(before: list[str], given: list[str]) -> list[str]:
    """Overrides but for those that are given anew."""
    return [a for a in before if key_of(a) not in set(map(key_of, given))]


def key_of(override: str) -> str:
    """What an override is about: `+a.b=c` is about a.b."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def of_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def quoted(path: Path) -> str:
    """A path as a Hydra value, whatever is in it."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
