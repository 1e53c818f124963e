"""Models, their tokenizers and the folders of heads, by zoo name, folder or hub id."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from specdec import hub, quantization
from specdec.registry import unknown

PACKAGE = Path(__file__).parent
ZOO = PACKAGE / "zoo"
HEAD_KEY = "specdec_head"  # in the config.json of a drafter's trained head: its kind
OLD_HUB_ID = re.compile(r"\w[\w.-]*")  # of the first models on the hub, as in gpt2
TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def names_model(spec: object) -> TypeGuard[str | Path]:
    """Whether what was given for a drafter can only name a model, which then writes the draft: a path, a string with a
    slash (a folder or a hub id), a folder here, or a zoo name. `model_path` says what is wrong with it."""
    if isinstance(spec, Path):
        return True
    if not isinstance(spec, str) or not spec:
        return False
    return "/" in spec or any((folder / spec / "config.json").is_file() for folder in (ZOO, Path()))


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
