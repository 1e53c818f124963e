"""The text a head learns from: written by the target, found again, and none lost but what was being written."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from specdec import SamplingParams, SpeculativeDecoder, loading
from specdec.experiments.training.corpus import Document
from specdec.experiments.training.heads import distil, prompts
from specdec.experiments.training.heads.config import DataConfig
from specdec.experiments.training.heads.sequences import Sequences

TEXT = "".join(f"def f{i}(x):\n    return x * {i} + len(str({i * i}))\n\n\n" for i in range(60))


@pytest.fixture(scope="module")
def loaded(target):
    return loading.load_model(str(target), dtype="float64"), loading.load_tokenizer(str(target))


@pytest.fixture
def config(tmp_path):
    tmp_path.joinpath("a.txt").write_text(TEXT)
    return DataConfig(
        str(tmp_path / "cache"),
        path=str(tmp_path / "a.txt"),
        sequences=7,
        held_out=2,
        prompt_tokens=6,
        new_tokens=9,
        slots=3,
        shard=3,
    )


def make(config, loaded, progress=lambda done, count: None, **where):
    return distil.make_data(config, *loaded, progress, **where)


def equal(one: Sequences, other: Sequences) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Sequences))


def rows(sequences: Sequences) -> list[list[int]]:
    return [part.tolist() for part in np.split(sequences.tokens, sequences.lengths.cumsum()[:-1])]


def test_sequences_are_what_the_target_says(config, loaded):
    """Greedy and sampled in turn, whatever the drafter; held-out ones are greedy."""
    data = make(config, loaded)
    assert (len(data.train), len(data.held_out)) == (7, 2)
    decoder = SpeculativeDecoder(*loaded, drafter="none")
    for split, temperatures in ((data.train, (0.0, 1.0)), (data.held_out, (0.0, 0.0))):
        for i, row in enumerate(rows(split)):
            assert split.prompt_lengths[i] == 6
            prompt = decoder.tokenizer.decode(row[:6])
            if decoder.tokenizer(prompt)["input_ids"] != row[:6]:  # not every cut is where the tokenizer cuts
                continue
            sampling = SamplingParams(temperature=temperatures[i % 2], seed=i)
            assert decoder.generate(prompt, max_new_tokens=9, sampling=sampling).tokens == [row[6:]]
    other = dataclasses.replace(config, cache=config.cache + "2", drafter="ngram", slots=2)
    assert equal(make(other, loaded).train, data.train)


def test_what_is_there_is_not_written_again(config, loaded, monkeypatch):
    data = make(config, loaded)
    monkeypatch.setattr(distil, "Engine", None)  # nothing can be written
    again = make(config, loaded)
    assert equal(again.train, data.train)
    assert equal(again.held_out, data.held_out)
    fewer = make(dataclasses.replace(config, sequences=6), loaded)
    assert rows(fewer.train) == rows(data.train)[:6]


@pytest.mark.parametrize("change", [{"seed": 1}, {"new_tokens": 8}, {"temperatures": (0.5,)}, {"prompt_tokens": 5}])
def test_other_settings_are_other_files(change, config, loaded):
    names = {s.file.name for split in shards(config, loaded) for s in split}
    others = {s.file.name for split in shards(dataclasses.replace(config, **change), loaded) for s in split}
    assert not {n for n in names if n.startswith("train")} & others


def shards(config, loaded):
    return distil._shards(config, loaded[0], prompts.make_prompts(config, loaded[1], 0))


def test_other_weights_are_other_files(config, loaded, draft):
    other = loading.load_model(str(draft), dtype="float64"), loaded[1]
    found = [{s.file.name for split in shards(config, model) for s in split} for model in (loaded, other)]
    assert not found[0] & found[1]


def test_a_kill_loses_what_was_being_written(config, loaded, tmp_path):
    whole = make(dataclasses.replace(config, cache=str(tmp_path / "whole")), loaded)

    def stop(done, count):
        assert count == 9
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(config, loaded, stop)
    kept = list((tmp_path / "cache").glob("*.safetensors"))
    assert len(kept) == 1
    told = []
    parts = make(config, loaded, lambda done, count: told.append(done))
    assert told[0] == 3
    assert equal(parts.train, whole.train)


def test_processes_share_the_writing(config, loaded, tmp_path):
    """The second writes its share, then the first its own, and reads all."""
    with pytest.raises(FileNotFoundError):
        make(config, loaded, rank=1, world=2)
    half = len(list((tmp_path / "cache").glob("*")))
    data = make(config, loaded, rank=0, world=1)
    assert 0 < half < len(list((tmp_path / "cache").glob("*"))) == 4
    assert equal(data.train, make(dataclasses.replace(config, cache=config.cache + "2"), loaded).train)


def test_pieces_of_the_texts_as_they_stand(config, loaded):
    data = make(dataclasses.replace(config, corpus_share=0.5), loaded)
    assert len(data.train) == 14
    assert (data.train.prompt_lengths[7:] == data.train.lengths[7:]).all()
    assert (data.train.lengths[7:] == 15).all()
    train = TEXT[: int(len(TEXT) * 0.9)]
    assert all(loaded[1].decode(row) in train for row in rows(data.train)[7:])


def test_held_out_text_is_not_trained_on(config, loaded, monkeypatch):
    documents = [Document(f"a/{i}.py", f"name_{i} = {i * i}\n" * 8) for i in range(300)]
    held_out = [d.text for d in documents if d.held_out]
    assert 0 < len(held_out) < 100
    monkeypatch.setattr(prompts, "read_corpus", lambda packages: (documents, []))
    made = prompts.make_prompts(dataclasses.replace(config, path=None, packages=["x"]), loaded[1], 0)
    assert made.window is not None
    for i in range(40):
        kept, trained, window = (loaded[1].decode(f(i)) for f in (made.held_out, made.train, made.window))
        assert any(kept in text for text in held_out)
        for piece in (trained, window):
            assert any(piece in d.text for d in documents if not d.held_out)


def test_questions_in_turn(config, loaded, tmp_path):
    file = tmp_path / "question.jsonl"
    lines = [{"question_id": i, "category": "a", "turns": [f"question {i}", "more"]} for i in range(11)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = prompts.make_prompts(dataclasses.replace(config, path=str(file)), loaded[1], 160)
    texts = [loaded[1].decode(made.train(i)) for i in range(22)]
    assert texts[:4] == ["question 0", "question 0", "question 1", "question 1"]  # at both temperatures
    assert texts[18:] == ["question 10", "question 10", "question 0", "question 0"]
    assert loaded[1].decode(made.held_out(0)) == loaded[1].decode(made.held_out(1)) == "question 9"
    with pytest.raises(ValueError, match="positions"):
        prompts.make_prompts(dataclasses.replace(config, path=str(file)), loaded[1], 12)
    file.write_text(json.dumps(lines[0]))
    with pytest.raises(ValueError, match="one question"):
        prompts.make_prompts(dataclasses.replace(config, path=str(file)), loaded[1], 0)


def test_no_text(config, loaded, tmp_path):
    tmp_path.joinpath("a.txt").write_text("\n")
    with pytest.raises(ValueError, match="no text to train on"):
        make(config, loaded)
