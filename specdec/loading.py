"""Names to objects: models by zoo name, folder or hub id; drafters, trees and rules by yaml, path or object.

The yamls in conf/ are the only registry: `drafter="ngram"` reads conf/drafter/ngram.yaml and builds its `_target_`.
A `_target_` runs code, so one outside specdec and installed plug-ins must be allowed by name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Collection, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf"
ZOO = PACKAGE / "zoo"
PLUGINS = "specdec.plugins"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


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
        ValueError: there is none.
    """
    if name not in names(kind):
        raise unknown(kind, name, names(kind))
    content: dict[str, Any] = yaml.safe_load((CONF / kind / f"{name}.yaml").read_text())
    return content


def instantiate(spec: Mapping[str, Any], allow_targets: Collection[str] = (), what: str = "config") -> Any:
    """Call a mapping's `_target_` with its other keys; mappings inside that have one are made first."""
    function, arguments = bind(spec, allow_targets, what)
    for key, value in arguments.items():
        if isinstance(value, Mapping) and "_target_" in value:
            arguments[key] = instantiate(value, allow_targets, f"{what}.{key}")
        elif key == "tree" and isinstance(value, str):
            arguments[key] = build("tree", value, allow_targets=allow_targets)
    return function(**arguments)


def check(spec: Mapping[str, Any], allow_targets: Collection[str] = (), what: str = "config") -> None:
    """Raise the ValueErrors of `instantiate` about names and keys, here and inside, without calling anything."""
    for key, value in bind(spec, allow_targets, what)[1].items():
        if key == "tree" and isinstance(value, str):
            value = read_yaml("tree", value) if "." not in value else {"_target_": value}
        if isinstance(value, Mapping) and "_target_" in value:
            check(value, allow_targets, f"{what}.{key}")


def bind(spec: Mapping[str, Any], allow_targets: Collection[str], what: str) -> tuple[Any, dict[str, Any]]:
    """What a mapping's `_target_` is, and the arguments for it, looked over.

    Raises:
        ValueError: the `_target_` is missing, unknown or not allowed; a key is unknown, or one is missing.
    """
    if "_target_" not in spec:
        raise ValueError(f"{what} has no _target_; got the keys {', '.join(map(str, spec)) or '(none)'}")
    function = find_target(str(spec["_target_"]), allow_targets)
    arguments = {str(k): v for k, v in spec.items() if k != "_target_"}
    known = inspect.signature(function).parameters
    for key in arguments:
        if key not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            raise unknown(f"setting of {what} ({spec['_target_']})", key, known)
    missing = [
        k for k, p in known.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD and k not in arguments
    ]
    if missing:
        raise ValueError(
            f"{what} ({spec['_target_']}) needs the setting {missing[0]!r}; add it to the yaml or the call"
        )
    return function, arguments


def find_target(path: str, allow_targets: Collection[str] = ()) -> Any:
    """The object a dotted path names.

    Raises:
        ValueError: it is outside specdec, plug-ins and `allow_targets`, or does not exist.
    """
    allowed = ["specdec", *_plugin_packages(), *allow_targets]
    if not any(path == a or path.startswith(a + ".") for a in allowed):
        raise ValueError(
            f"_target_ {path!r} would run code from outside specdec; if you trust it, pass allow_targets=[{path!r}]"
        )
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"_target_ {path!r} was not found: {error}") from error


@cache
def _plugin_packages() -> tuple[str, ...]:
    return tuple(sorted({entry.value.split(":")[0].split(".")[0] for entry in metadata.entry_points(group=PLUGINS)}))


def model_path(name: str) -> str:
    """Where a model is: a zoo name's folder, a folder, or a hub id as it stands.

    Raises:
        ValueError: neither; or a folder without a model, or with a damaged one.
    """
    zoo = sorted(p.parent.name for p in ZOO.glob("*/config.json"))
    if name in zoo:
        return str(ZOO / name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"model folder {name!r} does not exist; give a folder, a hub id, or one of: {', '.join(zoo)}")
    if "/" not in name:
        raise unknown("model", name, zoo)
    return name


def check_folder(folder: Path) -> None:
    """Refuse a model folder that is incomplete, before anything is loaded from it.

    Raises:
        ValueError: config.json or the safetensors are missing, or a weight file is cut off.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json; expected a folder written by save_pretrained")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"{folder} has no .safetensors file; specdec loads no pickles. Convert it with save_pretrained"
        )
    for file in weights:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or cut off ({error}); copy or download it again") from error


def load_model(
    name: str, device: str = "auto", dtype: str | torch.dtype = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model from the zoo, a folder or the hub; safetensors only.

    Args:
        name: see `model_path`.
        device: a torch device, or auto: a GPU if there is one.
        dtype: a torch dtype or its name, or auto: as saved.
        trust_remote_code: run the repository's own model code. Off unless asked for.

    Raises:
        ValueError: there is no such model, dtype or device, or its files are damaged.
    """
    path = model_path(name)
    if isinstance(dtype, str) and dtype != "auto" and dtype not in DTYPES:
        raise unknown("dtype", dtype, ["auto", *DTYPES])
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=chosen, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot load {name!r} as a causal language model: {str(error).splitlines()[0]}") from error
    return model.to(choose_device(device)).eval()


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(model_path(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"no tokenizer for {name!r}: {str(error).splitlines()[0]}") from error


def choose_device(device: str) -> torch.device:
    """`auto` is the GPU if there is one.

    Raises:
        ValueError: torch does not know the device, or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return chosen
