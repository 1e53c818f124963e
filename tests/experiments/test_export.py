"""`specdec export`: what it writes gives the same drafts, and what cannot be written is told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import specdec
from specdec import loading
from specdec.drafters.medusa import Medusa
from specdec.drafters.medusa_head import MedusaHead
from specdec.experiments.cli import main
from specdec.target import Target

from ..heads import make_head
from ..models import byte_tokenizer, make_model


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target's folder, with a tokenizer."""
    folder = tmp_path_factory.mktemp("target")
    make_model(dtype=torch.float64).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_head(drafter: str, target: Path, folder: Path) -> str:
    make_head(drafter, Target(loading.load_model(target)), own_lm_heads=False).save(folder)
    return str(folder)


def export(target: Path, *arguments: str) -> int:
    return main(["export", f"target.name={target}", *arguments])


@pytest.mark.parametrize("format", sorted(MedusaHead.formats))
def test_heads(format: str, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same text in the same steps as with the head that was exported."""
    head, output = save_head("medusa", target, tmp_path / "head"), tmp_path / "out"
    assert export(target, "drafter=medusa", f"drafter.head={head}", f"format={format}", f"output={output}") == 0
    assert capsys.readouterr().out.strip() == str(output)
    model, ids = loading.load_model(target), torch.tensor([[5, 6, 7]])
    runs = [
        specdec.generate(model, ids, drafter=Medusa(folder), max_new_tokens=20, eos_token_id=[])
        for folder in (head, output)
    ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert runs[0].stats.accept_lengths == runs[1].stats.accept_lengths


def test_draft_models(target: Path, tmp_path: Path) -> None:
    """A model folder, tokenizer included."""
    output = tmp_path / "out"
    assert export(target, "drafter=draft_model", f"drafter.model.name={target}", f"output={output}") == 0
    wanted, got = (loading.load_model(folder).state_dict() for folder in (target, output))
    assert all(torch.equal(got[key], x) for key, x in wanted.items())
    tokenizers = [loading.load_tokenizer(folder) for folder in (target, output)]
    assert loading.fingerprint(tokenizers[0]) == loading.fingerprint(tokenizers[1])
    assert json.loads((output / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_what_cannot_be_exported(target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    medusa, hydra = (save_head(kind, target, tmp_path / kind) for kind in ("medusa", "hydra"))
    given = ["drafter=medusa", f"drafter.head={medusa}", f"output={tmp_path / 'out'}"]
    for arguments, told in (
        ([*given, "format=vlm"], "unknown format of Medusa 'vlm'. Did you mean 'vllm'?"),
        ([*given, f"output={medusa}"], "is there already"),
        (["drafter=ngram", *given[2:]], "nothing of NGram can be exported"),
        (["drafter=hydra", f"drafter.head={hydra}", *given[2:]], "nothing of Hydra can be exported"),
        ([*given, "drafter.head=./nowhere"], "head folder './nowhere' does not exist"),
        ([*given, f"drafter.head={target}"], "holds no Medusa head"),
    ):
        assert export(target, *arguments) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert told in line
    assert not (tmp_path / "out").exists()
