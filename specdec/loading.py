"""Names to objects: models by zoo name, folder or hub id; drafters, trees and rules by yaml, path or object.

The yamls in conf/ are the only registry: `drafter="ngram"` reads conf/drafter/ngram.yaml and builds its `_target_`.
A `_target_` runs code, so one outside specdec and installed plug-ins must be allowed by name.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Collection, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

import torch
import yaml
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from specdec import hub, quantization

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf"
ZOO = PACKAGE / "zoo"
PLUGINS = "specdec.plugins"
MISSING = "???"  # in a yaml: to be given
HEAD_KEY = "specdec_head"  # in the config.json of a drafter's trained head: its kind
OLD_HUB_ID = re.compile(r"\w[\w.-]*")  # of the first models on the hub, as in gpt2
TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*")
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


def instantiate(spec: Mapping[str, Any], allow_targets: Collection[str] = (), what: str = "config") -> Any:
    """Call a mapping's `_target_` with its other keys; mappings inside that have one are made first."""
    function, arguments = bind(spec, allow_targets, what)
    for key, value in arguments.items():
        if isinstance(value, Mapping) and "_target_" in value:
            arguments[key] = instantiate(value, allow_targets, f"{what}.{key}")
        elif key == "tree" and isinstance(value, str):
            arguments[key] = build("tree", value, allow_targets=allow_targets)
        elif key == "drafter" and isinstance(value, str):
            arguments[key] = build("drafter", value, allow_targets=allow_targets)
        elif key == "drafters" and isinstance(value, list):
            arguments[key] = [build("drafter", part, allow_targets=allow_targets) for part in value]
    return function(**arguments)


def check(spec: Mapping[str, Any], allow_targets: Collection[str] = (), what: str = "config") -> None:
    """Raise the ValueErrors of `instantiate` about names and keys, here and inside, without calling anything."""
    for key, value in bind(spec, allow_targets, what)[1].items():
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
        ValueError: the `_target_` is missing, unknown or not allowed; a key is unknown, or one is missing.
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
    return function, arguments


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


def is_model_folder(spec: object) -> TypeGuard[str | Path]:
    """Whether what was given for a drafter is the folder of a model, which then writes the draft."""
    return isinstance(spec, str | Path) and (Path(spec) / "config.json").is_file()


def model_path(name: str | Path) -> str:
    """Where a model is: a zoo name's folder, a folder, or a hub id as it stands.

    Raises:
        ValueError: neither; or a folder without a model, or with a damaged one.
    """
    folder = find_folder("model", name)
    if folder is None:
        return str(name)
    check_folder(folder)
    return str(folder)


def find_folder(what: str, name: str | Path) -> Path | None:
    """The folder of a zoo name or a path; None for what can only be a hub id.

    Args:
        what: model or head.
        name: of one.

    Raises:
        ValueError: it is none of these.
    """
    name, folder = str(name), Path(name).expanduser()
    if Path(name).name == name and (ZOO / name / "config.json").is_file():
        return ZOO / name  # of the other kind, perhaps: whoever reads it says so
    if name and folder.is_dir():
        return folder
    zoo = _zoo(what)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        ours = f", or one of: {', '.join(zoo)}" * bool(zoo)
        raise ValueError(f"{what} folder {name!r} does not exist; give a folder, a hub id{ours}")
    meant = difflib.get_close_matches(name.lower(), zoo, n=1, cutoff=0.8)
    if "/" not in name and (what != "model" or meant or not OLD_HUB_ID.fullmatch(name)):
        raise unknown(what, name, zoo)
    return None


def _zoo(what: str) -> list[str]:
    """Names of the shipped models or heads."""
    folders = sorted(file.parent for file in ZOO.glob("*/config.json"))
    return [folder.name for folder in folders if (head_kind(folder) is not None) == (what == "head")]


def head_kind(folder: Path) -> str | None:
    """The drafter that the folder holds a trained head for; None if it is no head, as far as config.json tells."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    if config.get("speculators_model_type") == "dflash":
        return "block"
    foreign = {"medusa_num_heads": "medusa", "dflash_config": "block", "draft_vocab_size": "eagle"}  # no model has them
    return str(config[HEAD_KEY]) if HEAD_KEY in config else next((k for x, k in foreign.items() if x in config), None)


def check_folder(folder: Path) -> None:
    """Refuse a model folder that is incomplete, before anything is loaded from it.

    Raises:
        ValueError: it holds a head; config.json or the safetensors are missing; or a weight file is cut off.
    """
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json; expected a folder written by save_pretrained")
    if kind := head_kind(folder):
        raise ValueError(f"{folder} holds a head, not a model; give it to its drafter: drafter={kind}, head={folder}")
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
    for index in folder.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        if gone := sorted(named - {file.name for file in weights}):
            raise ValueError(f"{folder / gone[0]} is missing, but {index.name} names it; copy or download it again")


def load_model(
    name: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> PreTrainedModel:
    """A causal language model from the zoo, a folder or the hub; safetensors only.

    Args:
        name: see `model_path`.
        device: a torch device, or auto: a GPU if there is one.
        dtype: a torch dtype or its name, or auto: as saved.
        trust_remote_code: run the repository's own model code. Off unless asked for.
        quantize: int8 or int4: the linear layers' weights in so many bits, through torchao (see `quantization`).

    Raises:
        ValueError: there is no such model, dtype or device, its files are damaged, or it cannot be quantised so.
    """
    path = model_path(name)
    if quantize is not None and quantize not in quantization.KINDS:
        raise unknown("quantize", str(quantize), quantization.KINDS)
    if isinstance(dtype, str) and dtype != "auto" and dtype not in DTYPES:
        raise unknown("dtype", dtype, ["auto", *DTYPES])
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    where = choose_device(device)
    if quantize is not None:
        quantization.check(quantize, where)
    offline = not Path(path).is_dir() and hub.local_only()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=chosen,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            local_files_only=offline,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = _reason(error, path, offline)
        raise ValueError(f"cannot load {str(name)!r} as a causal language model: {reason}") from error
    if lacking := sorted(report["missing_keys"]):  # transformers fills in random numbers
        raise ValueError(f"{str(name)!r} lacks the weights {', '.join(lacking[:3])}{' ...' * (len(lacking) > 3)}")
    if quantize is not None:
        quantization.quantize(model, quantize, where)
    return model.to(where).eval()


def _reason(error: Exception, path: str, offline: bool) -> str:
    """The line of transformers' message that says what to do, or a better one."""
    text = str(error)
    if isinstance(error, OSError) and not Path(path).is_dir():
        shipped = f"; shipped models: {', '.join(_zoo('model'))}" * ("/" not in path)
        return (hub.offline_message() if offline else text.strip().splitlines()[0]) + shipped
    if "trust_remote_code" in text:
        return "it comes with code of its own, which runs only with trust_remote_code=True"
    if "mismatched" in text:
        return "its weights do not have the shapes that its config.json says"
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


def load_tokenizer(name: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ValueError: there is none.
    """
    path = model_path(name)
    if Path(path).is_dir() and not has_tokenizer(path):
        raise ValueError(f"no tokenizer for {str(name)!r}: {path} has none of {', '.join(TOKENIZER_FILES)}")
    offline = not Path(path).is_dir() and hub.local_only()
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=offline)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"no tokenizer for {str(name)!r}: {_reason(error, path, offline)}") from error


def has_tokenizer(folder: str) -> bool:
    """Whether `folder` is one, with a tokenizer's files."""
    return bool(folder) and any(any(Path(folder).glob(files)) for files in TOKENIZER_FILES)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """32 bytes that tell tokenizers apart: two with the same words at the same ids are the same."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).digest()


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
