"""Folders of others: what in their settings can run code is refused until it is given again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from specdec.experiments.cli import main
from specdec.experiments.trust import runs_code, told_to_run


def test_a_folder_of_others_runs_no_code_by_itself(specdec_run, tmp_path, capsys):
    code, directory = specdec_run("drafter=ngram", "data.limit=1")
    assert code == 0
    file = directory / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config |= {"allow_targets": ["os.system"], "tracker": {"_target_": "os.system", "command": "touch executed"}}
    file.write_text(yaml.safe_dump(config))
    assert main(["run", "from=result", "hydra.run.dir=again"]) == 1
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "again").exists()
    told = capsys.readouterr().err
    assert "allow_targets=[os.system]" in told
    assert "give them again" in told
    main(["run", "from=result", "hydra.run.dir=again", "allow_targets=[os.system]"])
    assert (tmp_path / "executed").exists()


def test_what_is_given_again_is_trusted_and_takes_the_folders_place(specdec_run, tmp_path, capsys):
    code, directory = specdec_run("drafter=ngram", "data.limit=1", "allow_targets=[tests.heads]")
    assert code == 0
    assert main(["run", "from=result", "hydra.run.dir=again"]) == 1
    capsys.readouterr()
    again = ["run", "from=result", "hydra.run.dir=again", "allow_targets=[tests.heads]"]
    assert main(again) == 0
    assert main(again) == 0  # it is finished already
    assert (tmp_path / "again" / "config.yaml").read_text() == (directory / "config.yaml").read_text()
    assert main([*again, "measure.repeats=2"]) == 1
    assert "measure.repeats=2 cannot be given with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"allow_targets": [], "a": {"trust_remote_code": False}, "backend": {"python": None, "settings": {}}}, {}),
        ({"target": {"name": "x", "trust_remote_code": True}}, {"target.trust_remote_code": True}),
        ({"methods": {"a": {"backend": {"python": "/x"}}}}, {"methods.a.backend.python": "/x"}),
        ({"backend": {"settings": {"worker_cls": "x.Y"}}}, {"backend.settings": {"worker_cls": "x.Y"}}),
        ({"methods": {"a": {"drafter": {"drafters": [{"model": {"trust_remote_code": "yes"}}]}}}},
         {"methods.a.drafter.drafters.0.model.trust_remote_code": "yes"}),
    ],
)  # fmt: skip
def test_what_runs_code_is_found_at_any_depth(config, found):
    assert runs_code(config) == found


@pytest.mark.parametrize(
    "override",
    [
        "allow_targets=[os.system]",
        "+target.trust_remote_code=true",
        "target={name: x, trust_remote_code: true}",
        "backend.python=/tmp/x",
        "+methods={a: {backend: {python: /tmp/x}}}",
        "+backend.settings.worker_cls=x.Y",
        "backend=${oc.create:${oc.decode:'{}'}}",
        "hydra.searchpath=[file:///tmp]",
        "+hydra.callbacks.x._target_=os.system",
        "hydra={callbacks: {}}",
        "hydra.launcher.setup=[touch x]",
    ],
)
def test_overrides_that_can_run_code(override):
    assert told_to_run([override, "drafter=ngram"]) == [override]


@pytest.mark.parametrize(
    "override",
    [
        "data.path=/home/python/x.jsonl",
        "hydra/launcher=cores",
        "hydra.launcher.n_jobs=2",
        "+hydra.launcher.ray.init.num_cpus=1",
        "hydra.sweeper.n_trials=4",
    ],
)
def test_other_overrides_are_let_through(override):
    assert told_to_run([override]) == []


def test_a_run_that_was_stopped_is_not_gone_on_with_blindly(specdec_run, capsys):
    code, directory = specdec_run("drafter=ngram", "data.limit=1")
    assert code == 0
    file = directory / "overrides.yaml"
    file.write_text(yaml.safe_dump([*yaml.safe_load(file.read_text()), "allow_targets=[tests.heads]"]))
    (directory / "config.yaml").unlink()
    assert main(["run", "resume=result"]) == 1
    told = capsys.readouterr().err
    assert "allow_targets=[tests.heads]" in told
    assert "give them again" in told
    assert main(["run", "resume=result", "allow_targets=[tests.heads]"]) == 0


def test_nor_is_a_sweep(specdec_run, tmp_path, capsys):
    folder = tmp_path / "sweep"
    target = f"target.name={tmp_path}"
    folder.mkdir()
    settings = {"overrides": [target, "backend.python=/tmp/x"], "hydra": ["hydra/launcher=cores"]}
    Path(folder / "sweep.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", "resume=sweep"]) == 1
    assert "backend.python=/tmp/x" in capsys.readouterr().err
