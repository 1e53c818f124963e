"""`specdec export`: a trained head or a draft model as a folder that another engine loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from specdec import loading, registry
from specdec.core import Drafter
from specdec.drafters.draft_model import DraftModel
from specdec.engine import Engine


def export(raw: Mapping[str, Any]) -> Path:
    """Write what the configuration asks for; returns the folder.

    Args:
        raw: `target`, `drafter`, `format`, `output`, `allow_targets`, as in conf/export.yaml.

    Raises:
        ValueError: the drafter does not fit the target, has no such format, or the folder holds something already.
    """
    allowed = tuple(raw["allow_targets"])
    output = Path(raw["output"]).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output={output} is there already; give a new folder, or delete it first")
    transformers_logging.disable_progress_bar()
    model = registry.instantiate(raw["target"], allowed, "target")
    drafter = Engine(model, raw["drafter"], None, "coupled", allow_targets=allowed).drafter
    known = formats(drafter, model)
    if not known:
        raise ValueError(
            f"nothing of {type(drafter).__name__} can be exported; `medusa`, `eagle`, `block` and `draft_model` have "
            "weights that other engines run"
        )
    if raw["format"] not in known:
        raise registry.unknown(f"format of {type(drafter).__name__}", str(raw["format"]), known)
    known[raw["format"]](output)
    return output


def formats(drafter: Drafter, model: PreTrainedModel) -> dict[str, Callable[[Path], None]]:
    """What writes the drafter's weights, by format: that of a draft model, or those its head names."""
    if type(drafter) is DraftModel:
        return {"vllm": partial(_save_model, drafter.model)}
    head = getattr(drafter, "head", None)

    def write(make: Callable[..., Any], output: Path) -> None:
        make(head, model).save(output)

    return {name: partial(write, make) for name, make in getattr(head, "formats", {}).items()}


def _save_model(model: PreTrainedModel, output: Path) -> None:
    """As transformers saves it, the tokenizer beside it."""
    model.save_pretrained(output)
    if loading.has_tokenizer(model.name_or_path):
        loading.load_tokenizer(model.name_or_path).save_pretrained(output)
