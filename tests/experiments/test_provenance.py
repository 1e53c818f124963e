"""What a result says of the code and the machine it comes from."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from specdec.experiments import provenance
from specdec.experiments.report.page import facts
from specdec.experiments.report.run_files import read_run

SMI = b"""0, H100, 1980, 2619, 1980, 71.50, 700.00, 31, 570.1
1, H100, [N/A], 2619, 1980, [Not Supported], 700.00, 30, 570.1
"""


def test_changes_that_are_not_committed_are_known_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())

    def git(*arguments: str) -> bytes:
        own = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x.x"]
        return subprocess.run([*own, *arguments], check=True, capture_output=True).stdout

    git("init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-qm", "first")
    state = provenance.git_state()
    assert state is not None
    assert state.keys() == {"commit", "dirty"}
    assert not state["dirty"]
    (tmp_path / "a.py").write_text("2\n")
    (tmp_path / "b.py").write_text("new\n")
    state = provenance.git_state()
    assert state is not None
    assert state["dirty"]
    assert state["changed"] == 2
    assert state["diff_sha256"] == hashlib.sha256(git("diff", "HEAD")).hexdigest()
    (tmp_path / "a.py").write_text("3\n")
    again = provenance.git_state()
    assert again is not None
    assert again["diff_sha256"] != state["diff_sha256"]


def test_frequencies_as_linux_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "CPUS", tmp_path)
    assert provenance.governor() is None
    assert provenance.cpu_clocks() is None
    for core, (governor, now) in enumerate((("performance", 3_500_000), ("powersave", 800_000))):
        folder = tmp_path / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
        (folder / "scaling_min_freq").write_text("800000\n")
        (folder / "scaling_max_freq").write_text("3800000\n")
        (folder / "scaling_cur_freq").write_text(f"{now}\n")
    assert provenance.governor() == "performance, powersave"
    assert provenance.cpu_clocks() == {"min": 800, "max": 3800, "now": [800, 3500]}


def test_clocks_and_power_of_gpus(monkeypatch: pytest.MonkeyPatch):
    def told(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        assert command[0] == "nvidia-smi"
        return subprocess.CompletedProcess(command, 0, SMI, b"")

    monkeypatch.setattr(subprocess, "run", told)
    found = provenance.gpu_clocks()
    assert found is not None
    assert found[0]["clocks.sm"] == 1980
    assert found[0]["power.draw"] == 71.5
    assert found[0]["driver_version"] == "570.1"
    assert found[1]["clocks.sm"] is None
    assert found[1]["power.draw"] is None

    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    assert provenance.gpu_clocks() is None


def test_the_report_says_it(specdec_run):
    code, directory = specdec_run("drafter=ngram", "data.limit=1")
    assert code == 0
    run = read_run(directory)
    assert run.provenance["clocks"].keys() == {"cpu", "gpu"}
    run.provenance["git"] = {"commit": "abc", "dirty": True, "changed": 3, "diff_sha256": "f" * 64}
    run.provenance["cpu"]["governor"] = "powersave"
    run.provenance["clocks"] = {"cpu": {"min": 800, "max": 3800, "now": [900, 1000]}, "gpu": [{"clocks.sm": 1980}]}
    told = dict(facts(run))
    assert told["Commit"] == "abc with uncommitted changes (3 files, sha256 of the difference ffffffffffff)"
    assert "governor powersave" in told["CPU"]
    assert told["Clocks at the start"] == "CPU 900 to 1000 of 800 to 3800 MHz; GPU clocks.sm 1980"
