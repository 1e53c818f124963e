"""`specdec train`: the shipped trainings shortened, going on, and the card."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from specdec import SpeculativeDecoder, loading
from specdec.experiments import train
from specdec.experiments.cli import main

TRAININGS = sorted(path.stem for path in (loading.CONF / "experiment").glob("train_*.yaml"))
SHORT = {
    "packages": "[rich]",
    "steps": 2,
    "model": "{hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, "
    "num_key_value_heads: 1, head_dim: 16, tie_word_embeddings: true, max_position_embeddings: 128}",
    "vocab_size": 300,
    "synthetic_documents": 2,
    "tokens_per_step": 64,
    "stages": "[{until: 1.0, length: 32}]",
    "warmup_steps": 1,
    "evaluate_every": 2,
    "checkpoint_every": 1,
    "threads": 1,
}


@pytest.fixture
def train_short(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)

    def run(experiment: str, **settings: object) -> int:
        given = {**SHORT, "output": "out", **settings}
        if experiment.endswith("_draft"):
            given |= {"teacher": target, "tokenizer": target}
        if experiment.endswith("_further"):
            given |= {"start": "first", "tokenizer": "first"}
        return main(["train", f"experiment={experiment}", *[f"training.{k}={v}" for k, v in given.items()]])

    return run


@pytest.mark.parametrize("experiment", TRAININGS)
def test_every_training_runs_and_leaves_a_model_with_its_card(experiment, train_short, tmp_path, capsys):
    if experiment.endswith("_further"):
        assert train_short("train_tiny", output="first") == 0
    assert train_short(experiment) == 0, capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    facts = ("rich", "MIT", "bits per byte", "2 steps of 64 tokens", "Held out")
    for fact in (f"specdec train experiment={experiment}", *facts):
        assert fact in card
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["data"]["sources"][0]["name"] == "rich"
    decoder = SpeculativeDecoder.from_pretrained(str(tmp_path / "out"), drafter="ngram")
    assert decoder.generate("import os", max_new_tokens=4).stats.new_tokens == 4


def test_a_stopped_training_goes_on_to_the_same_weights(train_short, tmp_path, monkeypatch, capsys):
    assert train_short("train_tiny", output="whole", steps=3, decay_share=1.0) == 0
    pretrain = train.pretrain

    def stop(config, progress):
        def watch(step, steps, loss):
            progress(step, steps, loss)
            if step == 3:
                raise KeyboardInterrupt

        return pretrain(config, watch)

    monkeypatch.setattr(train, "pretrain", stop)
    assert train_short("train_tiny", output="parts", steps=3, decay_share=1.0) == 130
    assert "go on with: specdec train experiment=train_tiny" in capsys.readouterr().err
    monkeypatch.setattr(train, "pretrain", pretrain)
    assert train_short("train_tiny", output="parts", steps=3, decay_share=1.0) == 0
    assert "Going on from step 2 of 3" in capsys.readouterr().out
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)
    assert (tmp_path / "whole" / "history.jsonl").read_text() == (tmp_path / "parts" / "history.jsonl").read_text()

    assert train_short("train_tiny", output="parts", seed=1) == 1
    assert "holds a training with another decay_share, seed" in capsys.readouterr().err


def test_a_training_goes_on_from_the_weights_of_another(train_short, tmp_path, capsys):
    assert train_short("train_tiny", output="first") == 0
    assert train_short("train_tiny_further", steps=1, learning_rate=0.0, weight_decay=0.0) == 0
    first, further = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "out"))
    assert all(first[name].equal(further[name]) for name in first)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained further from `first`" in card
    assert "2 steps of 64 tokens: 128 tokens" in card  # of the first
    assert train_short("train_tiny_further", output="other", vocab_size=301) == 1
    assert "weights of another shape" in capsys.readouterr().err
