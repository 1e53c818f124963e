"""`specdec train`: the shipped trainings shortened, going on, and the card."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from safetensors.torch import load_file

from specdec import SpeculativeDecoder, loading, registry
from specdec.experiments import train
from specdec.experiments.cli import main
from specdec.experiments.folder_lock import only_writer
from specdec.experiments.training import corpus, datastore

FILES = list((registry.CONF / "experiment").glob("train_*.yaml"))
OTHERS = {"train_retrieval", "train_tiny_datastore"} | {
    file.stem for file in FILES if "/training/" in file.read_text()
}  # see tests/.../heads
TRAININGS = [name for name in sorted(file.stem for file in FILES) if name.removesuffix("_further") not in OTHERS]
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
        if experiment.endswith("_further"):
            given |= {"start": "first", "tokenizer": "first"}
        if "_draft" in experiment:
            given |= {"teacher": target, "tokenizer": target}
        return main(["train", f"experiment={experiment}", *[f"training.{k}={v}" for k, v in given.items()]])

    return run


@pytest.mark.parametrize("experiment", TRAININGS)
def test_every_training_runs_and_leaves_a_model_with_its_card(experiment, train_short, tmp_path, capsys):
    if experiment.endswith("_further"):
        assert train_short(experiment.removesuffix("_further"), output="first") == 0
    assert train_short(experiment) == 0, capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    facts = ("rich", "MIT", "bits per byte", "2 steps of 64 tokens", "Held out")
    for fact in (f"specdec train experiment={experiment}", *facts):
        assert fact in card
    title = "tiny-draft" if "_draft" in experiment else "tiny"  # the model's name, not the training's
    assert f"\n---\n# {title}\n" in card
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
    files = {file: file.read_bytes() for file in (tmp_path / "parts").iterdir()}
    with only_writer(tmp_path / "parts"):
        assert train_short("train_tiny", output="parts", steps=4, decay_share=1.0) == 1
    assert "parts is being written by another process" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "parts").iterdir()} == files


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


@pytest.fixture
def sorts_suffixes(monkeypatch):
    """pydivsufsort, or where it is not installed what it does, slowly."""
    try:
        import pydivsufsort  # noqa: F401
    except ImportError:
        slow = ModuleType("pydivsufsort")
        slow.divsufsort = lambda tokens: np.array(sorted(range(len(tokens)), key=lambda at: tokens[at:].tolist()))
        monkeypatch.setitem(sys.modules, "pydivsufsort", slow)


def test_a_datastore_is_built_and_drafts_from_it(sorts_suffixes, target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("one.txt").write_text("import os\nimport sys\nprint(os.sep)\n")
    settings = ["training.packages=[]", "training.files=[one.*]", f"training.tokenizer={target}"]
    assert main(["train", "experiment=train_retrieval", *settings]) == 0, capsys.readouterr().err
    assert "of 1 texts" in capsys.readouterr().out
    folder = tmp_path / "outputs" / "train_retrieval"
    assert json.loads((folder / "provenance.json").read_text())["data"]["sources"] == []
    drafter = {**registry.read_yaml("drafter", "retrieval"), "path": str(folder / "datastore.bin")}
    decoder = SpeculativeDecoder.from_pretrained(str(target), drafter=drafter)
    found = decoder.engine.drafter.datastore
    ids = decoder.tokenizer("import os\nimport sys\n")["input_ids"]
    match = found.find(ids[:-2], 2)
    assert match[0] == len(ids) - 2
    assert found.continuations(match, 2, 9) == [ids[-2:]]
    assert decoder.generate("import os", max_new_tokens=4).stats.new_tokens == 4


def test_a_datastore_of_other_texts(sorts_suffixes, target, tmp_path, monkeypatch, capsys):
    """`data.path` stands instead of the packages: text files, or what is asked in a question file."""
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("one.txt").write_text("import os\nimport sys\n")
    question = {"question_id": 1, "category": "a", "turns": ["import re\n", "import json\n"]}
    tmp_path.joinpath("question.jsonl").write_text(json.dumps(question) + "\n")
    for path, words in (("*.txt", "import os\n"), ("question.jsonl", "import json\n")):
        settings = ["drafter=retrieval", f"target.name={target}", f"data.path={path}", f"training.output={path[-3:]}"]
        assert main(["train", *settings]) == 0, capsys.readouterr().err
        assert "of 1 texts" in capsys.readouterr().out
        drafter = {"_target_": "specdec.drafters.retrieval.Retrieval", "path": f"{path[-3:]}/datastore.bin"}
        decoder = SpeculativeDecoder.from_pretrained(str(target), drafter=drafter)
        ids = decoder.tokenizer(words)["input_ids"]
        assert decoder.engine.drafter.datastore.find(ids, len(ids))[0] == len(ids)


def test_a_datastore_without_held_out_files(sorts_suffixes, target, tmp_path, monkeypatch):
    config = datastore.DatastoreConfig(str(tmp_path), str(target), packages=["hydra-core"])
    documents = [corpus.Document(f"a/{i}.py", f"x = {i}\n") for i in range(200)]
    kept = [d for d in documents if not d.held_out]
    assert 0 < len(kept) < 200
    monkeypatch.setattr(datastore, "read_corpus", lambda packages: (documents, []))
    whole = datastore.build(config, lambda done, total: None)
    assert whole.documents == len(kept)
    half = datastore.build(replace(config, most_tokens=whole.tokens // 2), lambda done, total: None)
    assert half.tokens == whole.tokens // 2
    assert half.documents < whole.documents


def test_the_shipped_datastore():
    """It is there under its name, and its tokenizer is the shipped target's."""
    drafter = registry.build("drafter", "retrieval")
    assert drafter.datastore.tokenizer == loading.fingerprint(loading.load_tokenizer("tiny"))
    assert drafter.datastore.tokens == 1_500_000


def test_what_a_datastore_cannot_be_built_from(sorts_suffixes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def error(*settings):
        assert main(["train", "experiment=train_retrieval", *settings]) == 1
        return capsys.readouterr().err

    assert "training.most_tokens is 0; expected" in error("training.most_tokens=0")
    assert "training.packages and training.files are empty" in error("training.packages=[]")
    assert "'no*.txt' matches no file" in error("training.files=[no*.txt]")
    assert "unknown model 'tinny'" in error("training.tokenizer=tinny")
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    assert "sorting suffixes needs pydivsufsort: pip install pydivsufsort" in error()
