"""`specdec train drafter=...` from the command line: a folder that drafts, and one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from specdec import SpeculativeDecoder, loading
from specdec.experiments.cli import main
from specdec.experiments.folder_lock import only_writer
from specdec.experiments.training.heads import command

TEXT = "".join(f"def f{i}(x):\n    return x * {i} + len(str({i * i}))\n\n\n" for i in range(60))
DATA = {"path": "a.txt", "sequences": 12, "held_out": 3, "prompt_tokens": 6, "new_tokens": 20, "cache": "cache"}
TRAINING = {"output": "out", "steps": 4, "batch": 4, "anchors": 4, "length": 26, "warmup_steps": 1, "threads": 1}
EVERY = {"evaluate_every": 2, "checkpoint_every": 2}


@pytest.fixture
def overrides(target, tmp_path, monkeypatch) -> Callable[..., list[str]]:
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("a.txt").write_text(TEXT)
    given = [f"data.{key}={value}" for key, value in DATA.items()]
    given += [f"training.{key}={value}" for key, value in {**TRAINING, **EVERY}.items()]
    head = ["drafter=medusa", "training.head.heads=3", "drafter.tree=null", f"target.name={target}"]
    return lambda *more: ["train", *head, *given, *more]


def test_a_head_is_trained_and_drafts(overrides, target, tmp_path, capsys):
    assert main(overrides("training.loss=lk", "tracker=jsonl")) == 0, capsys.readouterr().err
    folder = tmp_path / "out"
    drafter = {"_target_": "specdec.drafters.medusa.Medusa", "head": str(folder)}
    decoder = SpeculativeDecoder.from_pretrained(str(target), drafter=drafter)
    plain = SpeculativeDecoder.from_pretrained(str(target), drafter="none")
    assert decoder.engine.drafter.head.depth == 3
    assert decoder.generate("import os", max_new_tokens=30).text == plain.generate("import os", max_new_tokens=30).text
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [2, 4]
    assert all(row["mean_accepted_length"] >= 1 for row in history)
    card = (folder / "README.md").read_text()
    use = "specdec run drafter=medusa drafter.head=FOLDER"
    for fact in (use, "heads 3", "4 steps of 4 sequences", "loss | lk", "a.txt", "training.loss=lk"):
        assert fact in card
    assert f"{history[-1]['mean_accepted_length']:.4f} tokens a step" in card
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["data"] == {"path": "a.txt", "sources": [], "sequences": 12}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "log"] == [1, 2, 3, 4]
    assert lines[-1]["summary"]["mean_accepted_length_decoded"] >= 1


def test_the_target_s_most_frequent_tokens_are_drafted(target, overrides, tmp_path, monkeypatch, capsys):
    made = []
    make_data = command.make_data
    monkeypatch.setattr(command, "make_data", lambda *given: made.append(make_data(*given)) or made[-1])
    eagle = ["drafter=eagle", "drafter.tree=chain", "training.head.depth=2", "training.head.draft_tokens=5"]
    rest = [word for word in overrides()[1:] if not word.startswith(("drafter", "training.head"))]
    assert main(["train", *eagle, *rest]) == 0, capsys.readouterr().err
    text = made[0].train
    written = [t for i in range(len(text)) for t in text.row(i)[text.prompt_lengths[i] :]]
    counts = torch.tensor(written).bincount()
    first = load_file(tmp_path / "out" / "model.safetensors")
    drafted = first["d2t"] + torch.arange(5)
    assert drafted.tolist() == counts.argsort(descending=True, stable=True)[:5].sort().values.tolist()
    further = ["training.start=out", "training.output=further", "training.steps=1", "data.seed=1"]
    assert main(["train", *eagle, *rest, *further, "training.learning_rate=1e-9"]) == 0, capsys.readouterr().err
    second = load_file(tmp_path / "further" / "model.safetensors")
    assert second["d2t"].equal(first["d2t"])  # what the weights were trained for, whatever this text has
    assert all(torch.allclose(second[key], first[key], rtol=0, atol=1e-6) for key in first)
    assert "trained further from `out`" in (tmp_path / "further" / "README.md").read_text()


def test_a_stopped_training_goes_on_to_the_same_weights(overrides, tmp_path, monkeypatch, capsys):
    assert main(overrides("training.output=whole")) == 0
    with only_writer(tmp_path / "whole"):
        assert main(overrides("training.output=whole")) == 1
    assert "whole is being written by another process" in capsys.readouterr().err
    train = command.train

    def stop(config, head, teacher, data, progress, accelerator):
        def watch(step, loss, accepted):
            progress(step, loss, accepted)
            if step == 3:
                raise KeyboardInterrupt

        return train(config, head, teacher, data, watch, accelerator)

    monkeypatch.setattr(command, "train", stop)
    assert main(overrides()) == 130
    assert "go on with: specdec train drafter=medusa" in capsys.readouterr().err
    monkeypatch.setattr(command, "train", train)
    assert main(overrides("data.slots=2", "training.threads=1")) == 0
    assert "Going on from step 2 of 4" in capsys.readouterr().out
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(whole[name].equal(parts[name]) for name in whole)
    assert main(overrides("data.seed=1", "training.seed=1")) == 1
    assert "holds a training with another data, seed" in capsys.readouterr().err


def test_the_text_alone(overrides, tmp_path, capsys):
    assert main(overrides("training.only_data=true")) == 0
    assert "12 sequences, 240 tokens of the target's own" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["data.new_tokens=3"], "data.new_tokens is 3"),
        (["training.length=9"], "training.length is 9"),
        (["training.head.head=3"], "unknown setting 'training.head.head'. Did you mean 'training.head.heads'?"),
        (["+training.head.head=3"], "Did you mean 'heads'?"),
        (["drafter.tree=chain", "+drafter.tre=1"], "Did you mean 'tree'?"),
        (["training.head.heads=2", "drafter.tree={_target_: specdec.tree.static.chain, length: 3}"], "depth 2 or less"),
        (["training.batch=3", "training.accumulate=2"], "give a multiple of 2"),
        (["training.start=nowhere"], "'nowhere'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_in_one_line(more, told, overrides, tmp_path, capsys):
    assert main(overrides(*more)) == 1
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "\n" not in error
    assert not (tmp_path / "out" / "model.safetensors").exists()


def commands() -> list[str]:
    """What docs/training.md says one can type."""
    lines = (loading.PACKAGE.resolve().parent / "docs" / "training.md").read_text().splitlines()
    found = [line for line in lines if line.startswith(("specdec train ", "specdec run ", "accelerate launch "))]
    assert len(found) == 3
    return found


@pytest.mark.parametrize("line", commands())
def test_the_page_names_what_there_is(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = line.partition("specdec.experiments.cli ")[2] or line.removeprefix("specdec ")
    assert main([*words.split(), "--cfg", "job"]) == 0
    assert "specdec.drafters.medusa.Medusa" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_are_as_one(overrides, tmp_path):
    """Each of two takes half of every step's sequences; the target whole, or spread over both."""
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    starts = {"one": [], "two": torchrun, "spread": torchrun}
    for name, start in starts.items():
        more = [f"training.output={name}", f"training.shard_target={name == 'spread'}", "training.dtype=float32"]
        cache = "cache" if name == "one" else "shared"
        program = [sys.executable, *start, "-m", "specdec.experiments.cli", *overrides(*more, f"data.cache={cache}")]
        done = subprocess.run(program, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Reading the texts") == 1  # only one of them speaks
    files = [{f.name for f in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] >= {"model.safetensors"}
    one, *others = (load_file(tmp_path / name / "model.safetensors") for name in starts)
    history = [(tmp_path / name / "history.jsonl").read_text() for name in starts]
    for other in others:
        assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in history]
    assert losses[1] == pytest.approx(losses[0])
    assert losses[2] == pytest.approx(losses[0])
