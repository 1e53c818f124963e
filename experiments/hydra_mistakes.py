"""What Hydra says of a mistake, in one line and with the names there are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from specdec.registry import CONF

# by the beginning of a name, the first that fits
EXTRAS = {"hydra/launcher/ray": "ray", "hydra/launcher": "launchers", "hydra/sweeper": "search"}


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse options that Hydra does not have: it would write its usage.

    Raises:
        ValueError: there is one.
    """
    known = get_args_parser()._option_string_actions
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        name, _, value = argument.partition("=")
        if not name.startswith("-") or any(each.startswith(name) for each in known) or name[:2] in known:
            continue
        value = value or ("VALUE" if "=" in following else following.strip("-") or "VALUE")
        raise ValueError(f"there is no option {name}; settings are given as name=value: {name.strip('-')}={value}")


def explain(error: Exception, command: str, arguments: Sequence[str] = ()) -> str:
    """One line for what Hydra says in several, with the names there are."""
    text = str(error)
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    missing = re.search(r"(?:Could not find|could not find|Could not load) '([^']+)'", text)
    options = re.search(r"Available options in '([^']+)':\s*(.*?)(?:\n\s*\n|Config search path|$)", text, re.DOTALL)
    if missing and options:
        group, known = options[1], sorted(options[2].split())
        name = missing[1].removeprefix(f"{group}/")
        model = f"; any model: target=pretrained target.name={name}" if group == "target" else ""
        return f"{group}={name} is not there.{_meant(name, known)} Known: {', '.join(known)}{_extra(missing[1])}{model}"
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
    extra = next((extra for name, extra in EXTRAS.items() if group.startswith(name)), "")
    return f'; it is one of Hydra\'s extra packages: pip install "specdec[{extra}]"' if extra else ""


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
