"""Speculation off, on and adaptive, of the drafter that a run's configuration chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from specdec import registry
from specdec.experiments.config import RunConfig
from specdec.experiments.load.settings import SPECULATION, Settings
from specdec.experiments.machine_file import MEASURE
from specdec.experiments.methods import NO_DRAFTER, Method, Spec

ADAPTIVE = "specdec.drafters.adaptive.Adaptive"


def configured(raw: Mapping[str, Any], settings: Settings) -> RunConfig:
    """The configuration of a run whose methods are `off`, and those of `on` and `adaptive` that are asked for.

    Raises:
        ValueError: as `RunConfig.parse`; or the drafter is none to be compared.
    """
    drafter, tree = raw.get("drafter"), raw.get("tree")
    if isinstance(drafter, str):
        drafter = registry.read_yaml("drafter", drafter)
    target = str((drafter or {}).get("_target_"))
    methods: dict[str, Spec] = {}
    if settings.speculation != SPECULATION[:1]:
        if not drafter or target in (NO_DRAFTER, ADAPTIVE):
            raise ValueError(
                "load compares speculation off, on and adaptive: choose the drafter that is fixed and made adaptive, "
                "as in drafter=suffix; or load.speculation=[off]"
            )
        inner = drafter if tree is None else {**drafter, "tree": tree}
        around = registry.read_yaml("drafter", "adaptive") | {"drafter": inner, "curve": _curve(settings.curve)}
        specs = {"on": inner, "adaptive": around}
        methods = {name: {"drafter": specs[name]} for name in settings.speculation if name in specs}
    plain = {key: value for key, value in raw.items() if key not in ("load", "drafter", "tree")}
    return RunConfig.parse({**plain, "methods": methods, "drafter": None if methods else {"_target_": NO_DRAFTER}})


def _curve(given: str | float) -> str | float:
    """Until it is measured, a number stands for it."""
    return 0.0 if given == MEASURE else given


def by_speculation(config: RunConfig, settings: Settings) -> dict[str, Method]:
    """`off`, which is always there, and the others."""
    names = [name for name in SPECULATION[1:] if name in settings.speculation]
    return dict(zip([SPECULATION[0], *names], config.methods, strict=True))


def with_curve(method: Method, file: Path) -> Method:
    """The adaptive method, with a measured curve."""
    return replace(method, drafter={**method.drafter, "curve": str(file)})
