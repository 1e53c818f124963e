"""Heads on disk: what is saved comes back, and whatever is wrong with the files is one ValueError."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from specdec import heads, loading
from specdec.target import Target

from .models import make_model


@dataclass(frozen=True)
class Config:
    width: int
    layers: tuple[int, ...] = (1, 2)


class Head(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.linear = nn.Linear(config.width, 2)
        self.embedding: Tensor | None = None

    def bind(self, embedding: Tensor, lm_head: Tensor) -> None:
        self.embedding = embedding


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    heads.write_head(tmp_path / "head", "some", Config(3), Head(Config(3)).to(torch.bfloat16).state_dict())
    return tmp_path / "head"


def load(folder: Path, kind: str = "some") -> tuple[Config, Head]:
    settings, tensors = heads.read_head(folder)
    config = heads.make_config(Config, kind, settings, folder)
    return config, heads.with_weights(Head, config, tensors, folder)


def test_round_trip(folder: Path) -> None:
    config, head = load(folder)
    assert config == Config(3)
    assert head.linear.weight.dtype == torch.bfloat16
    saved = heads.read_head(folder)[1]
    assert torch.equal(head.linear.weight, saved["linear.weight"])
    assert head.linear.weight.requires_grad


def edit(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"no valid json|holds list"):
        load(folder)


def test_settings_are_looked_over(folder: Path) -> None:
    edit(folder, widht=4)
    with pytest.raises(ValueError, match=r"unknown setting .* 'widht'\. Did you mean 'width'"):
        load(folder)
    edit(folder, widht=None, width=None)
    with pytest.raises(ValueError, match="lacks width"):
        load(folder)


def test_another_drafters_head(folder: Path) -> None:
    with pytest.raises(ValueError, match="a head for drafter=some; expected one for drafter=other"):
        load(folder, "other")
    edit(folder, specdec_head=None)
    with pytest.raises(ValueError, match="no head of specdec"):
        load(folder)


def test_truncated_weights(folder: Path) -> None:
    file = folder / heads.WEIGHTS
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="damaged or cut off"):
        load(folder)


def test_no_weights_and_pickled_weights(folder: Path) -> None:
    tensors = heads.read_head(folder)[1]
    (folder / heads.WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"has no .safetensors file; expected"):
        load(folder)
    torch.save(tensors, folder / "it's $old.pt")
    with pytest.raises(ValueError, match="loads no pickles") as refused:
        load(folder)
    (code,) = shlex.split(str(refused.value).partition("python -c ")[2])  # as a shell would
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, {})
    assert torch.equal(load(folder)[1].linear.weight, tensors["linear.weight"])


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"linear.weight": torch.zeros(2, 3)}, "lack linear.bias"),
        ({"linear.weight": torch.zeros(2, 4), "linear.bias": torch.zeros(2)}, r"shape \[2, 4\].* says \[2, 3\]"),
        ({"linear.weight": torch.zeros(2, 3), "linear.bias": torch.zeros(2), "x": torch.zeros(1)}, "hold x"),
    ],
)
def test_weights_of_another_shape(folder: Path, tensors: dict[str, Tensor], told: str) -> None:
    save_file(tensors, folder / heads.WEIGHTS)
    with pytest.raises(ValueError, match=told):
        load(folder)


def test_names() -> None:
    with pytest.raises(ValueError, match="unknown head 'nothing'"):
        heads.head_folder("nothing")
    with pytest.raises(ValueError, match=r"head folder './nothing' does not exist"):
        heads.head_folder("./nothing")


def test_a_head_is_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"holds a head, not a model; .* drafter=some"):
        loading.load_model(folder)
    monkeypatch.setattr(loading, "ZOO", folder.parent)
    assert heads.head_folder("head") == folder
    with pytest.raises(ValueError, match="holds a head, not a model"):
        loading.model_path("head")
    with pytest.raises(ValueError, match=r"give a folder, a hub id$"):  # none of the zoo is named
        loading.model_path("./nowhere")


def test_bound_to_two_targets(folder: Path) -> None:
    head = load(folder)[1]
    targets = [Target(make_model(dtype=dtype)) for dtype in (torch.bfloat16, torch.float64)]
    same, other = (heads.bound(head, target) for target in targets)
    assert same.linear.weight is head.linear.weight
    assert other.linear.weight.dtype == torch.float64
    assert head.linear.weight.dtype == torch.bfloat16
    assert head.embedding is None
    assert same.embedding is not None
    assert same.embedding.data_ptr() == targets[0].model.get_input_embeddings().weight.data_ptr()
    assert other.embedding is not None
    assert other.embedding.dtype == torch.float64


def test_others_may_read_a_head_that_was_written(tmp_path: Path) -> None:
    """Safetensors are made for their owner alone."""
    heads.Export({"a": 1}, {"x": torch.ones(1)}).save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    assert weights.stat().st_mode == config.stat().st_mode
