"""Trained heads of drafters on disk: a config.json and safetensors, found by zoo name, folder or hub id.

What the files mean is each head's own; see `TrainableHead` in core.py and drafters/*_head.py.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specdec import hub
from specdec.loading import HEAD_KEY, find_folder
from specdec.registry import unknown

if TYPE_CHECKING:
    from specdec.core import TrainableHead
    from specdec.target import Target

PICKLES = ("*.pt", "*.pth", "*.bin")
CONFIG = "config.json"
WEIGHTS = "model.safetensors"

ConfigT = TypeVar("ConfigT")
HeadT = TypeVar("HeadT", bound=nn.Module)


def head_folder(name: str | Path) -> Path:
    """Where a head is; one on the hub is fetched (config.json and safetensors alone).

    Raises:
        ValueError: there is none of that name.
    """
    folder = find_folder("head", name)
    if folder is not None:
        return folder
    offline = hub.local_only()
    try:
        patterns = [CONFIG, "*.safetensors"]
        return Path(snapshot_download(str(name), allow_patterns=patterns, local_files_only=offline))
    except (OSError, ValueError) as error:
        reason = hub.offline_message() if offline else str(error).strip().splitlines()[0]
        raise ValueError(f"there is no folder {str(name)!r}, and no such head can be fetched: {reason}") from error


def read_head(name: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A head's config.json, and the tensors of all its safetensors files, on the CPU.

    Raises:
        ValueError: there is no such head; config.json or safetensors are missing or damaged.
    """
    folder = head_folder(name)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {CONFIG}; expected a trained head's, beside its safetensors") from error
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is no valid json ({error}); copy or download it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds {type(config).__name__}; expected a head's settings")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no .safetensors file{_convert(folder)}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or cut off ({error}); copy or download it again") from error
    return config, tensors


def _convert(folder: Path) -> str:
    """What to do about weights that are there as pickles."""
    found = next((file for kind in PICKLES for file in sorted(folder.glob(kind))), None)
    if found is None:
        return "; expected a trained head's weights"
    source, made = json.dumps(found.name), json.dumps(f"{found.stem}.safetensors")  # as Python writes strings, too
    load = f'torch.load({source}, map_location="cpu", weights_only=True)'
    save = f"save_file({{k: v.clone() for k, v in {load}.items()}}, {made})"
    code = shlex.quote(f"import torch; from safetensors.torch import save_file; {save}")
    return f"; specdec loads no pickles. If you trust {found.name}, convert it there: python -c {code}"


def write_head(folder: str | Path, kind: str, config: object, tensors: Mapping[str, Tensor]) -> None:
    """Save what `read_head` and `make_config` read.

    Args:
        folder: made if it is not there.
        kind: the drafter's name.
        config: a dataclass.
        tensors: of the head, without what it was bound to.
    """
    settings: dict[str, Any] = asdict(config)  # type: ignore[call-overload]
    Export({HEAD_KEY: kind} | settings, tensors).save(folder)


@dataclass(frozen=True, slots=True)
class Export:
    """What a folder of some format holds: config.json, and tensors in the file `weights`."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weights: str = WEIGHTS

    def save(self, folder: str | Path) -> None:
        """Write it; the folder is made if it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.detach().cpu().contiguous() for name, x in self.tensors.items()}
        config, weights = folder / CONFIG, folder / self.weights
        config.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, weights, {"format": "pt"})
        weights.chmod(config.stat().st_mode)  # safetensors lets nobody else read its files


def make_config(cls: type[ConfigT], kind: str, config: Mapping[str, Any], name: str | Path) -> ConfigT:
    """The dataclass `cls` from what `write_head` saved of one. Lists become tuples.

    Raises:
        ValueError: it is another drafter's head, or a setting is missing or unknown.
    """
    if config.get(HEAD_KEY) != kind:
        got = f"a head for drafter={config[HEAD_KEY]}" if HEAD_KEY in config else "no head of specdec"
        raise ValueError(f"{name} holds {got}; expected one for drafter={kind}")
    settings = {key: tuple(x) if isinstance(x, list) else x for key, x in config.items() if key != HEAD_KEY}
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise unknown(f"setting in the config.json of {name}", key, known)
    required = [key for key, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [key for key in required if key not in settings]:
        raise ValueError(f"the config.json of {name} lacks {', '.join(lacking)}; copy or export it again")
    return cls(**settings)


def with_weights(
    cls: Callable[[ConfigT], HeadT], config: ConfigT, tensors: Mapping[str, Tensor], name: str | Path
) -> HeadT:
    """The head `cls(config)` with saved tensors, in the dtype they were saved in.

    Raises:
        ValueError: a tensor is missing, is none of the head's, or has another shape.
    """
    with torch.device("meta"):
        head = cls(config)
    wanted = head.state_dict()
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in tensors:
            raise ValueError(f"the weights of {name} lack {key}, which its config.json speaks of")
        if key not in wanted:
            raise ValueError(f"the weights of {name} hold {key}, which its config.json does not speak of")
        got, expected = tuple(tensors[key].shape), tuple(wanted[key].shape)
        if got != expected:
            raise ValueError(f"{key} of {name} has shape {list(got)}; its config.json says {list(expected)}")
    head.load_state_dict(tensors, assign=True)
    return head


def target_weights(target: Target) -> tuple[Tensor, Tensor]:
    """The target's embedding and LM head, `[V, H]` each, for `TrainableHead.bind`."""
    model = target.model
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


def begun(head: HeadT, target: Target) -> HeadT:
    """A new head on the target's device, bound to it; all in float32, as it is trained."""
    embedding, lm_head = (weight.float() for weight in target_weights(target))
    cast("TrainableHead", head.to(embedding.device)).bind(embedding, lm_head)
    return head


def bound(head: HeadT, target: Target) -> HeadT:
    """The head on the target's device, in its dtype, with `bind` called; `head` itself stays as it was.

    Weights that fit as they are are shared, not copied.
    """
    embedding, lm_head = target_weights(target)
    fits = all((x.device, x.dtype) == (embedding.device, embedding.dtype) for x in head.parameters())
    made = copy(head) if fits else deepcopy(head).to(embedding.device, embedding.dtype)
    cast("TrainableHead", made).bind(embedding, lm_head)
    return made
