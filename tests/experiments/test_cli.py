"""The command: help, and every mistake in one line without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import specdec
from specdec.experiments import run
from specdec.experiments.cli import main


def one_line(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The mistake that was told."""
    shown = capsys.readouterr()
    lines = shown.err.strip().splitlines()
    assert code == 1
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("specdec: ")
    assert "Traceback" not in shown.out
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["foo=1"], "unknown setting 'foo'"),
        (["+foo=1"], "unknown setting 'foo'"),
        (["drafter=draft_model", "tree.length=3"], "tree.length is set, but no tree is chosen"),
        (["drafter=draft_model", "tree=chain", "tree.lenght=3"], "Did you mean 'tree.length'"),
        (["drafter=ngrm"], "Did you mean 'ngram'?"),
        (["drafter.lenght=3"], "Did you mean 'drafter.length'?"),
        (["+drafter.lenght=3"], "Did you mean 'length'?"),
        (["measure.repeat=3"], "Did you mean 'measure.repeats'?"),
        (["measure.repeats=0"], "measure.repeats is 0; expected a whole number of at least 1"),
        (["measure.time_limit=-1"], "measure.time_limit is -1"),
        (["measure.max_new_tokens=200"], "200, but the target has 160 positions"),
        (["stream=0"], "stream is 0"),
        (["target=nothing"], "Known: pretrained, tiny; any model: target=pretrained target.name=nothing"),
        (["target=/no/such"], "target=/no/such is not there. Known: pretrained, tiny"),
        (["--drafter", "x"], "there is no option --drafter; settings are given as name=value: drafter=x"),
        (["--drafter=x"], "given as name=value: drafter=x"),
        (["--drafter", "drafter=ngram"], "given as name=value: drafter=VALUE"),
        (["-d", "x"], "there is no option -d"),
        (["target.name=/nowhere/at/all"], "does not exist"),
        (["target=pretrained", "target.name=???"], "target.name has no value"),
        (["target._target_=os.system"], "would run code from outside specdec"),
        (["data.path=/nowhere.jsonl"], "no file '/nowhere.jsonl'"),
        (["data.limit=-1"], "data.limit is -1"),
        (["data.categories=[cod]"], "Did you mean 'code'?"),
        (["sampling.temperature=-1"], "sampling.temperature is -1"),
        (["backend.attention=fast"], "unknown attention backend 'fast'"),
        (["tracker=wandb", "tracker.mode=sometimes"], "tracker.mode is 'sometimes'"),
        (["tree=chain"], "drafter 'ngram' takes no tree; leave `tree` out"),
        (["drafter=draft_model", "tree=best_first", "tree.replacement=true"], "Known: tree.depth, tree.max"),
        (["drafter=hydra"], "drafter.head has no value; give one, as in drafter.head=FOLDER; `specdec train dra"),
        (["drafter=ngram", "drafter.length=abc"], "'length' of drafter of ngram is 'abc'; expected a whole number"),
        (["drafter=ngram", "drafter.length=true"], "'length' of drafter of ngram is True; expected a whole number"),
        (["drafter=ngram", "drafter.length=2.5"], "is 2.5; expected a whole number"),
        (["drafter=draft_model", "tree=chain", "tree.length=six"], "tree is 'six'; expected a whole number"),
        (["drafter=draft_model", "tree=best_first", "tree.max_nodes=many"], "'max_nodes' of drafter of draft_model"),
        (["drafter=suffix", "drafter.remember=lots"], "is 'lots'; expected a whole number"),
        (["drafter=lookahead", "drafter.window=x"], "is 'x'; expected a whole number"),
        (["acceptance=typical", "acceptance.epsilon=abc"], "'epsilon' of acceptance is 'abc'; expected a number"),
        (["drafter=early_exit", "drafter.skip=3"], "is 3; expected a list, each a whole number or null"),
        (["drafter=early_exit", "drafter.skip=[a]"], "is ['a']; expected a list, each a whole number or null"),
        (["drafter=intersection", "drafter.draft_tokenizer=nothere/at/all"], "model folder 'nothere/at/all' does not"),
        (["drafter=intersection", "drafter.draft_tokenizer=3"], "'draft_tokenizer' of drafter of intersection is 3"),
        (["drafter=hybrid", "drafter.drafters=suffix"], "expected a list, as in [suffix]"),
        (["backend=sdpa", "backend.exact=true"], "or triton; got 'sdpa'"),
        (["backend=flex", "backend.exact=true"], "or triton; got 'flex'"),
        (["backend=naive", "backend.exact=true"], "or triton; got 'naive'"),
        (["backend=sdpa", "backend.exakt=true"], "Did you mean 'backend.exact'?"),
        (["drafter=ngram,draft_model"], "for a sweep add -m"),
        (["ngram"], "'ngram' is no setting; settings are name=value without spaces, as in drafter=ngram"),
        (["drafter", "=", "ngram"], "settings are name=value"),
        (["drafter=ngram", "=", "ngram"], "settings are name=value"),
        (["tree=chain", "tree.length=0", "drafter=draft_model"], "chain length is 0"),
        (["~drafter"], "nothing to measure"),
        (["+methods.mine.drafter=ngrm"], "Did you mean 'ngram'?"),
        (["only=[ngrm]"], "unknown method in only 'ngrm'. Did you mean 'ngram'?"),
        (["only=ngram"], "only is 'ngram'; expected a list"),
        (["only=[]"], "nothing to measure"),
        (["measure.noise=1"], "measure.noise is 1; expected true or false"),
        (["+methods.none_again.drafter=ngram", "measure.noise=true"], "call the method something else"),
        (["+methods.mine.tree=chain"], "methods.mine has no drafter"),
        (["experiment=train_tiny"], "start it with `specdec train`"),
        (["hydra/launcher=ray_cluster"], "specdec[ray]"),
        (["hydra/launcher=ray"], "specdec[ray]"),
        (["hydra/sweeper=tree_search"], "specdec[search]"),
        (["no_equal_sign"], "no_equal_sign"),
        (["resume=/nowhere"], "is not the directory of a run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_one_line(
    overrides: list[str], told: str, specdec_run: Callable[..., tuple[int, Path]], draft: Path, capsys
):
    drafted = [f"drafter.model.name={draft}"] if "drafter=draft_model" in overrides else []
    code, directory = specdec_run(*overrides, *drafted)
    assert told in one_line(capsys, code)
    assert not (directory / "requests.jsonl").exists()


@pytest.mark.parametrize("refused", ["a file in its way", "no right to write"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(
    refused: str, specdec_run: Callable[..., tuple[int, Path]], tmp_path: Path, monkeypatch, capsys
):
    def fail(*_: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(run, "run", fail)
    if refused == "a file in its way":
        (tmp_path / "folder").write_text("a text")
    else:
        (tmp_path / "folder").mkdir()
        monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may be run by root, who may write anywhere
    code, _ = specdec_run("drafter=ngram", f"hydra.run.dir={tmp_path}/folder/inner")
    told = one_line(capsys, code)
    assert "the run's folder folder/inner cannot be written: " in told
    assert told.endswith("give another hydra.run.dir=")
    assert not (tmp_path / "folder" / "inner").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "nothing to train was chosen"),
        (["experiment=demo"], "start it with `specdec run`"),
        (["--steps", "3"], "there is no option --steps; settings are given as name=value: steps=3"),
        (["drafter=ngram"], "give a drafter that is trained"),
        (["experiment=train_tiny", "training.step=3"], "Did you mean 'training.steps'?"),
        (["experiment=train_tiny", "+training.model.hiden_size=3"], "Did you mean 'hidden_size'?"),
        (["experiment=train_tiny", "training.steps=0"], "training.steps is 0"),
        (["experiment=train_tiny", "training.packages=[]"], "training.packages is empty"),
        (["experiment=train_tiny", "training.teacher=/nowhere/at/all"], "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_training_mistakes_in_one_line(overrides: list[str], told: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert told in one_line(capsys, main(["train", *overrides]))
    assert not list(tmp_path.iterdir())


def test_other_commands(capsys, tmp_path):
    assert main(["--version"]) == 0
    assert specdec.__version__ in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "specdec run experiment=demo" in capsys.readouterr().out
    assert main([]) == 2
    capsys.readouterr()
    assert "Did you mean 'run'?" in one_line(capsys, main(["rum"]))
    assert "has no summary.json" in one_line(capsys, main(["report", str(tmp_path)]))


NEED_NO_TORCH = [
    ["--help"],
    ["--version"],
    [],
    ["rum"],
    ["run", "--help"],
    ["train", "--help"],
    ["run", "drafter=ngrm"],
]
NEED_NO_TORCH += [["run", "foo=1"], ["run", "--drafter", "x"], ["run", "hydra.run.dir=/dev/null/x"]]
NEED_NO_TORCH += [["run", "resume=/nowhere"], ["report", "--help"], ["trace", "--help"]]
ANSWERS = f"""
import contextlib, io, json, sys
from specdec.experiments.cli import main
for words in {NEED_NO_TORCH}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        main(words)
    print(json.dumps([words, len(out.getvalue()), "torch" in sys.modules]))
"""


def test_answers_that_need_no_torch(tmp_path: Path):
    """Loading it takes seconds."""
    environment = {**os.environ, "PYTHONPATH": str(Path(specdec.__file__).parents[1])}
    command = [sys.executable, "-c", ANSWERS]
    child = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert child.returncode == 0, child.stderr
    told = [json.loads(line) for line in child.stdout.splitlines()]
    assert [words for words, _, _ in told] == NEED_NO_TORCH
    assert all(length for _, length, _ in told), told
    assert [words for words, _, loaded in told if loaded] == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "expected"), [("run", "drafter=ngram"), ("train", "experiment=train_tiny")])
def test_help_names_the_choices(command: str, expected: str, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert expected in shown
    assert "$" not in shown.replace("${", "")


def test_report_again(specdec_run, capsys):
    code, directory = specdec_run("drafter=ngram")
    assert code == 0
    (directory / "report.html").unlink()
    assert main(["report", str(directory)]) == 0
    assert (directory / "report.html").exists()


def test_an_added_drafter_joins_the_methods_of_an_experiment(specdec_run, draft, capsys):
    model = f"methods.draft_model.drafter.model.name={draft}"
    code, directory = specdec_run(
        "experiment=demo", model, "~methods.ngram", "drafter=ngram", "name=mine", "stream=null"
    )
    assert code == 0, capsys.readouterr().err
    overrides = yaml.safe_load((directory / "overrides.yaml").read_text())
    assert "drafter=ngram" in overrides
    summary = json.loads((directory / "summary.json").read_text())
    assert [m["name"] for m in summary["methods"]] == ["none", "draft_model", "ngram"]
    assert summary["experiment"] == "mine"


@pytest.mark.slow
def test_the_command_without_hydra():
    """Without the extra, one line that says what to install."""
    code = "import sys; sys.modules['hydra'] = None; from specdec.experiments.cli import main; sys.exit(main(['run']))"
    root = Path(specdec.__file__).parents[1]
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert child.returncode == 1
    assert child.stderr.strip().splitlines()[-1].endswith('pip install "specdec[experiments]"')
