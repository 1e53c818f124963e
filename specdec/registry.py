"""Names to objects: drafters, trees and rules by yaml, dotted path or object.

The yamls in conf/ are the only registry: `drafter="ngram"` reads conf/drafter/ngram.yaml and builds its `_target_`.
A `_target_` runs code, so one outside specdec and installed plug-ins must be allowed by name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import yaml

from specdec.annotations import fits, hints_of, words

CONF = Path(__file__).parent / "conf"
PLUGINS = "specdec.plugins"
MISSING = "???"  # in a yaml: to be given
LOADERS = {"PreTrainedModel": "load_model", "PreTrainedTokenizerBase": "load_tokenizer"}  # of what a name stands for
BY_NAME = ("tree", "drafter", "drafters")  # settings that may be names of yamls


def unknown(what: str, name: str, known: Collection[str]) -> ValueError:
    """The error for a name that means nothing: what was got, what was perhaps meant, what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"unknown {what} {name!r}.{hint} Known: {', '.join(sorted(known))}")


def names(kind: str) -> list[str]:
    """The yamls there are of a kind: drafter, tree, acceptance."""
    return sorted(path.stem for path in (CONF / kind).glob("*.yaml"))


def build(kind: str, spec: object, *, allow_targets: Collection[str] = (), **settings: Any) -> Any:
    """Make a drafter, a tree policy or an acceptance rule.

    Args:
        kind: drafter, tree or acceptance.
        spec: the name of a yaml in conf/<kind>, a mapping with `_target_`, a dotted path, or the object itself.
        allow_targets: dotted paths, or beginnings of such, that may run besides specdec and its plug-ins.
        settings: keyword arguments over those of the yaml.

    Raises:
        ValueError: the name or a setting is unknown, or the `_target_` is not allowed; the message says which.
    """
    if isinstance(spec, str) and "." not in spec:
        spec = read_yaml(kind, spec)
    elif isinstance(spec, str):
        spec = {"_target_": spec}
    if not isinstance(spec, Mapping):
        if settings:
            raise ValueError(f"{kind} is an object already; {', '.join(settings)} cannot be set on it")
        return spec
    return instantiate({**spec, **settings}, allow_targets, kind)


def read_yaml(kind: str, name: str) -> dict[str, Any]:
    """conf/<kind>/<name>.yaml.

    Raises:
        ValueError: there is none, or it is not a yaml of settings.
    """
    if name not in names(kind):
        raise unknown(kind, name, names(kind))
    file = CONF / kind / f"{name}.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}; expected settings, one of them _target_")
    return content


def check_takes_tree(drafter: object, allow_targets: Collection[str] = ()) -> None:
    """Refuse a tree for a drafter, given as for `build`, that has no setting for one.

    Raises:
        ValueError: it takes none; or as `build`.
    """
    spec = drafter
    if isinstance(spec, str):
        spec = {"_target_": spec} if "." in spec else read_yaml("drafter", spec)
    if not isinstance(spec, Mapping) or "_target_" not in spec:
        return
    known = _parameters(find_target(str(spec["_target_"]), allow_targets))
    if known is not None and "tree" not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        name = drafter if isinstance(drafter, str) else yaml_name("drafter", spec)
        raise ValueError(f"drafter {name!r} takes no tree; leave `tree` out")


def yaml_name(kind: str, spec: Mapping[str, Any]) -> str:
    """The first yaml with this mapping's `_target_`, or that one's last word. A yaml that cannot be read is none: it is
    somebody else's, perhaps half written."""
    target = spec.get("_target_")
    for name in names(kind):
        with suppress(ValueError):
            if read_yaml(kind, name).get("_target_") == target:
                return name
    return str(target).rpartition(".")[2].lower()


def instantiate(spec: Mapping[str, Any], allow_targets: Collection[str] = (), what: str = "config") -> Any:
    """Call a mapping's `_target_` with its other keys; mappings inside that have one are made first."""
    function, arguments = bind(spec, allow_targets, what)
    texts = _texts(function)
    for key, value in arguments.items():
        if isinstance(value, Mapping) and "_target_" in value:
            arguments[key] = instantiate(value, allow_targets, f"{what}.{key}")
        elif key in texts:
            continue
        elif key == "tree" and isinstance(value, str):
            arguments[key] = build("tree", value, allow_targets=allow_targets)
        elif key == "drafter" and isinstance(value, str):
            arguments[key] = build("drafter", value, allow_targets=allow_targets)
        elif key == "drafters" and isinstance(value, list):
            arguments[key] = [build("drafter", part, allow_targets=allow_targets) for part in value]
    return function(**arguments)


def check(spec: Mapping[str, Any], allow_targets: Collection[str] = (), what: str = "config") -> None:
    """Raise the ValueErrors of `instantiate` about names and keys, here and inside, without calling anything."""
    function, arguments = bind(spec, allow_targets, what)
    texts = _texts(function)
    for key, value in arguments.items():
        if key in texts:
            continue
        if key == "tree" and isinstance(value, str):
            value = read_yaml("tree", value) if "." not in value else {"_target_": value}
        if isinstance(value, Mapping) and "_target_" in value:
            check(value, allow_targets, f"{what}.{key}")
        elif key == "drafter" and isinstance(value, str):
            check_spec("drafter", value, allow_targets)
        elif key == "drafters" and isinstance(value, list):
            for part in value:
                check_spec("drafter", part, allow_targets)


def check_spec(kind: str, spec: object, allow_targets: Collection[str] = ()) -> None:
    """Raise the ValueErrors of `build` about names and keys, without building anything."""
    if isinstance(spec, str):
        spec = {"_target_": spec} if "." in spec else read_yaml(kind, spec)
    if isinstance(spec, Mapping):
        check(spec, allow_targets, kind)


def bind(spec: Mapping[str, Any], allow_targets: Collection[str], what: str) -> tuple[Any, dict[str, Any]]:
    """What a mapping's `_target_` is, and the arguments for it, looked over.

    Raises:
        ValueError: the `_target_` is missing, unknown or not allowed; a key is unknown or missing, or its value is of
            another type than the annotation says.
    """
    if "_target_" not in spec:
        raise ValueError(f"{what} has no _target_; got the keys {', '.join(map(str, spec)) or '(none)'}")
    function = find_target(str(spec["_target_"]), allow_targets)
    arguments = {str(k): v for k, v in spec.items() if k != "_target_" and not (isinstance(v, str) and v == MISSING)}
    known = _parameters(function)
    if known is None:  # some classes written in C do not say
        return function, arguments
    several = {p.kind for p in known.values()}
    for key in arguments:
        if key not in known and inspect.Parameter.VAR_KEYWORD not in several:
            raise unknown(f"setting of {what} ({spec['_target_']})", key, known)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    missing = [k for k, p in known.items() if p.default is p.empty and p.kind not in variadic and k not in arguments]
    if missing:
        raise ValueError(
            f"{what} ({spec['_target_']}) needs the setting {missing[0]!r}; add it to the yaml or the call"
        )
    hints = hints_of(function)
    given = [key for key in arguments if key in hints and key in known and arguments[key] is not known[key].default]
    return function, {**arguments, **{key: _typed(key, arguments[key], hints[key], what) for key in given}}


def _typed(key: str, value: Any, hint: Any, what: str) -> Any:
    """The value, if it is what the annotation says; of a name where a model or a tokenizer is wanted, its mapping.

    Raises:
        ValueError: it is neither.
    """
    named = isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
    if (isinstance(value, Mapping) and "_target_" in value) or (key in BY_NAME and named):
        if key == "drafters" and isinstance(value, str):
            raise ValueError(f"setting {key!r} of {what} is {value!r}; expected a list, as in [{value}]")
        return value
    if fits(value, hint):
        return value
    loaders = [LOADERS[each.__name__] for each in (hint, *get_args(hint)) if getattr(each, "__name__", "") in LOADERS]
    if isinstance(value, str) and loaders:
        return {"_target_": f"specdec.loading.{loaders[0]}", "name": value}
    raise ValueError(f"setting {key!r} of {what} is {value!r}; expected {words(hint)}")


def _texts(function: Any) -> set[str]:
    """Settings that are text, whatever they are called: a name among them stands for no part."""
    return {key for key, hint in hints_of(function).items() if hint is str}


def _parameters(function: Any) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return None


def find_target(path: str, allow_targets: Collection[str] = ()) -> Any:
    """The object a dotted path names.

    Raises:
        ValueError: it is outside specdec, plug-ins and `allow_targets`, or does not exist.
    """
    allowed = ["specdec", *_plugin_packages(), *allow_targets]
    refusal = f"would run code from outside specdec; if you trust it, pass allow_targets=[{path!r}]"
    if not _within(path, allowed):
        raise ValueError(f"_target_ {path!r} {refusal}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"_target_ {path!r} was not found: {error}") from error
    if not callable(found):
        raise ValueError(f"_target_ {path!r} is a {type(found).__name__}; expected a class or a function")
    if not _within(path, allow_targets) and not _within(str(getattr(found, "__module__", "")), allowed):
        raise ValueError(f"_target_ {path!r} is {found.__module__}'s own and {refusal}")  # one of our modules' imports
    return found


def _within(path: str, allowed: Collection[str]) -> bool:
    return any(path == a or path.startswith(a + ".") for a in allowed)


@cache
def _plugin_packages() -> tuple[str, ...]:
    return tuple(sorted({entry.value.split(":")[0].split(".")[0] for entry in metadata.entry_points(group=PLUGINS)}))
