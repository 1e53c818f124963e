"""A tiny random target, draft model and tokenizer in a folder, questions for them, and the command to run them with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.experiments import held, machine
from specdec.experiments.bench import machine as machine_bench
from specdec.experiments.cli import main
from specdec.experiments.training.tokenizer import train_tokenizer

TEXTS = ["import os\n\n\ndef read(path):\n    return open(path).read()\n", "for i in range(10):\n    print(i, i * i)\n"]
POSITIONS = 160
QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 1, "category": "code", "turns": [TEXTS[0]], "reference": ["x"]},
    {"question_id": 2, "category": "code", "turns": [TEXTS[1], "\nprint(", "\n# and\n"]},
    {"question_id": "three", "category": "data", "turns": ["1, 2, 3\n" * 60]},  # longer than there are positions
]


def save_model(folder: Path, layers: int, seed: int) -> Path:
    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,  # of standard size, a random model would say one token for ever
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's bandwidth is not what is tested."""
    monkeypatch.setattr(machine, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(machine_bench, "BUFFER", {"cpu": 1 << 20})
    monkeypatch.setattr(machine_bench, "cache_bytes", lambda device: 1 << 17)
    monkeypatch.setattr(machine_bench, "SIDE", {"cpu": 256})
    monkeypatch.setattr(machine_bench, "INNER", 64)
    monkeypatch.setattr(machine_bench, "COLUMNS", 48)
    monkeypatch.setattr(held, "SECONDS", 0.01)


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "target", layers=2, seed=0)


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "draft", layers=1, seed=0)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "question.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return file


@pytest.fixture
def specdec_run(
    target: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Path]]:
    """`specdec run` on the tiny target: the exit code and the run's directory, which is always the same one."""
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "result"

    def run(*overrides: str, command: str = "run") -> tuple[int, Path]:
        short = [f"target.name={target}", f"data.path={questions}", "measure.max_new_tokens=8"]
        own = [*short, "measure.warmup_tokens=2", f"hydra.run.dir={directory}"]
        if command == "run" and not any(given.startswith("experiment=") for given in overrides):
            own.append("measure.noise=false")  # half the time
        return main([command, *own, *overrides]), directory

    return run


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
