"""Looks at plain configuration mappings: every mistake is one line that says what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from specdec import loading, registry

LOAD_MODEL = "specdec.loading.load_model"


def check_keys(given: object, known: set[str], what: str) -> None:
    """Refuse keys that mean nothing.

    Raises:
        ValueError: not a mapping, or a key is unknown.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{what}: got {given!r}; expected a mapping with the keys {', '.join(sorted(known))}")
    for key in given:
        if key not in known:
            raise registry.unknown(what, str(key), known)


def check_whole(given: object, known: set[str], experiment: str, optional: Collection[str] = ()) -> None:
    """See that an experiment's setting, which its yaml has in full, has all keys and no other.

    Raises:
        ValueError: not a mapping, a key is unknown, or one is missing.
    """
    check_keys(given, known, f"setting of {experiment}")
    assert isinstance(given, Mapping)
    if missing := sorted(known - set(optional) - set(given)):
        raise ValueError(
            f"{experiment} has no {', '.join(missing)}; begin with experiment={experiment}, which has them all"
        )


def check_above_0(name: str, value: object) -> None:
    """Refuse what is no number above 0.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{name} is {value!r}; expected a number above 0")


def check_counts(values: Mapping[str, object], least: int = 1) -> None:
    """Refuse what is no whole number, or too small a one. `values` by the settings' full names.

    Raises:
        ValueError: the first one that is.
    """
    for name, value in values.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")


def refuse_missing(spec: object, where: str, source: str = "") -> None:
    """Refuse `registry.MISSING`, which a yaml writes where the user has to say something: a folder or a file.
    `source` tells where there is one.

    Raises:
        ValueError: there is one; the message says where.
    """
    if spec == registry.MISSING:
        example = "FILE" if where.endswith(".path") else "FOLDER"
        raise ValueError(f"{where} has no value; give one, as in {where}={example}{source}")
    for key, value in spec.items() if isinstance(spec, Mapping) else ():
        refuse_missing(value, f"{where}.{key}", source)


def check_name(target: Any) -> None:
    """Refuse a target whose tokenizer could not be found and whose results would have no name.

    Raises:
        ValueError: it has no name.
    """
    name = target.get("name") if isinstance(target, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"target.name is {name!r}; expected a model's name or folder, whose tokenizer is read and by which results "
            "are told, also where another _target_ loads it"
        )


def check_models(spec: Mapping[str, Any]) -> None:
    """Look for every model that building `spec` would load.

    Raises:
        ValueError: one is not there or damaged.
    """
    for value in spec.values():
        if isinstance(value, Mapping):
            if value.get("_target_") == LOAD_MODEL:
                loading.model_path(str(value.get("name")))
            check_models(value)
