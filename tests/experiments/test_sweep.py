"""Sweeps: cells by their overrides, failures that stop nothing, kills at any moment, two processes in one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from specdec import loading
from specdec.experiments import lossless, measure, sweep
from specdec.experiments.cli import main
from specdec.experiments.folder_lock import only_writer
from specdec.experiments.records import key_of

from .conftest import read_rows

Sweep = Callable[..., int]
LENGTHS = "drafter.length=2,0,3"  # the second is refused


@pytest.fixture
def own(target: Path, questions: Path) -> list[str]:
    """A sweep's settings, but for what it goes through."""
    short = [
        "measure.max_new_tokens=4",
        "measure.warmup_tokens=0",
        "data.limit=1",
        "tracker=noop",
        "measure.noise=false",
    ]
    return [f"target.name={target}", f"data.path={questions}", *short, "hydra.sweep.dir=sweep"]


@pytest.fixture
def run(own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """`specdec run -m` into the folder `sweep`."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: main(["run", "-m", *own, *overrides])


def table(folder: Path = Path("sweep")) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / sweep.TABLE).read_text())
    return rows


def folder_of(override: str) -> Path:
    """Of the one cell that has an override."""
    (row,) = (row for row in table() if override in row["overrides"])
    return Path("sweep", row["cell"])


def test_a_cell_that_fails_is_kept_with_its_error_and_the_others_go_on(run: Sweep, capsys):
    assert run("drafter=ngram", LENGTHS) == 5
    shown = capsys.readouterr()
    assert [row["status"] for row in table()] == ["done", "failed", "done"]
    assert [row["speedup"] is None for row in table()] == [False, True, False]
    failed = folder_of("drafter.length=0")
    assert "ngram needs" in table()[1]["error"]
    assert "Traceback" in (failed / sweep.ERROR).read_text()
    assert {path.name for path in failed.iterdir()} == {sweep.ERROR, sweep.OVERRIDES}
    assert "1 of 3 cells failed or are not done; go on: specdec run -m resume=sweep" in shown.err
    assert "drafter.length=0" in shown.out
    (head,) = (line for line in shown.out.splitlines() if "┃ status" in line)
    assert head.replace("┃", "").split() == ["cell", "status", "speed-up", "note"]
    assert "target.name" not in shown.out.partition("status")[2].partition("All cells")[0]  # common to all
    frame = pl.read_parquet("sweep/results.parquet")
    assert frame["config.drafter.length"].drop_nulls().unique().sort().to_list() == [2, 3]
    assert frame["run"].n_unique() == 2
    assert Path("sweep/results.html").exists()


def test_a_sweep_goes_on_without_running_what_is_done(run: Sweep, monkeypatch, capsys):
    """A failed cell is tried again; if it succeeds, its error goes."""
    assert run("drafter=ngram", "drafter.length=2,3", "drafter.max_ngram=1,2") == 0
    assert [row["status"] for row in table()] == ["done"] * 4
    failed = Path("sweep", table()[2]["cell"])
    (failed / sweep.ERROR).write_text("the machine was taken away\n\nTraceback\n")
    assert "┃ note" not in capsys.readouterr().out  # of no cell is there one
    times = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/requests.jsonl")}
    monkeypatch.setattr(measure, "run_cell", None)
    assert main(["run", "-m", "resume=sweep"]) == 0
    assert capsys.readouterr().out.count(": done before") == 3
    assert not (failed / sweep.ERROR).exists()
    assert [row["status"] for row in table()] == ["done"] * 4
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_stopped_sweep_goes_on_inside_its_cell(run: Sweep, monkeypatch, capsys):
    served: list[object] = []
    run_cell = measure.run_cell

    def stop_at(number: int) -> None:
        def serve(*args):
            if len(served) == number:
                raise KeyboardInterrupt
            served.append(args)
            return run_cell(*args)

        monkeypatch.setattr(measure, "run_cell", serve)

    stop_at(3)
    assert run("drafter=ngram", "drafter.length=2,3,4") == 130
    assert "go on with: specdec run -m resume=sweep" in capsys.readouterr().err
    assert [row["status"] for row in table()] == ["done", "unfinished", "not begun"]
    before = read_rows(folder_of("drafter.length=3") / "requests.jsonl")
    assert len(before) == 1
    stop_at(-1)
    assert main(["run", "resume=sweep"]) == 0  # without -m too
    assert [row["status"] for row in table()] == ["done"] * 3
    assert len(served) == 3 * 2
    assert read_rows(folder_of("drafter.length=3") / "requests.jsonl")[:1] == before


def test_more_cells_in_the_same_folder_do_not_mix_with_those_that_are_there(run: Sweep, capsys):
    """By number, the first of these would lie where another was."""
    assert run("drafter=ngram", "drafter.length=3,4") == 0
    kept = {path: path.read_bytes() for path in Path("sweep").glob("*/requests.jsonl")}
    assert run("drafter=ngram", "drafter.length=2,3,4") == 0
    assert capsys.readouterr().out.count(": done before") == 2
    assert {path: path.read_bytes() for path in kept} == kept
    lengths = {yaml.safe_load((p / "config.yaml").read_text())["drafter"]["length"] for p in Path("sweep").glob("*/")}
    assert lengths == {2, 3, 4}
    assert len(table()) == 3
    assert main(["run", "resume=sweep", "drafter.length=5"]) == 1
    told = capsys.readouterr().err
    assert "drafter.length=5 cannot be given" in told
    assert "specdec run -m ... hydra.sweep.dir=sweep" in told
    cell = folder_of("drafter.length=2")
    assert main(["run", f"resume={cell}"]) == 0  # a cell is a run like any other
    assert main(["run", "-m", "drafter=ngram", f"hydra.sweep.dir={cell}"]) == 1
    assert "holds a run; give the sweep a folder of its own" in capsys.readouterr().err


def test_a_second_sweep_in_the_folder_leaves_the_first_ones_cells_to_be_gone_on_with(run: Sweep, monkeypatch, capsys):
    """Each plan is kept, and resumed with its own launcher."""
    run_cell = measure.run_cell

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "run_cell", stop)
    assert run("drafter=ngram", "drafter.length=2,3") == 130
    assert [row["status"] for row in table()] == ["unfinished", "not begun"]
    assert run("drafter=suffix", "data.per_category=null,1") == 130
    assert [row["status"] for row in table()] == ["unfinished", "not begun"] * 2
    assert run("drafter=ngram", "drafter.lenght=2") == 1  # cannot be composed: not a plan
    monkeypatch.setattr(measure, "run_cell", run_cell)
    capsys.readouterr()
    assert main(["run", "resume=sweep"]) == 0
    assert [row["status"] for row in table()] == ["done"] * 4
    plans = sweep.plans_of(Path("sweep"))
    assert plans is not None
    assert ["drafter=ngram" in plan["overrides"] for plan in plans] == [True, False]


def test_a_cell_that_a_time_limit_ended_is_gone_on_with(run: Sweep, monkeypatch, capsys):
    clock = iter(range(10000))
    monkeypatch.setattr("specdec.experiments.measure.time.perf_counter", lambda: float(next(clock)))
    limit = "measure.time_limit=1"
    assert run("drafter=ngram", "drafter.length=2,3", "data.limit=2", limit) == 0
    assert [row["status"] for row in table()] == ["time limit"] * 2
    assert all(row["speedup"] for row in table())
    assert main(["run", "resume=sweep", "measure.time_limit=null"]) == 0
    assert [row["status"] for row in table()] == ["done"] * 2
    assert len(list(Path("sweep").glob("*/config.yaml"))) == 2


def test_a_cell_that_another_process_is_at_is_left_out(run: Sweep, capsys):
    assert run("drafter=ngram", "drafter.length=2,3") == 0
    held = folder_of("drafter.length=2")
    (held / "summary.json").unlink()
    before = {path.name: path.read_bytes() for path in held.iterdir() if path.is_file()}
    with only_writer(held):
        assert main(["run", "resume=sweep"]) == 0
    assert "another process is at it, left out" in capsys.readouterr().out
    assert [row["status"] for row in table()] == ["elsewhere", "done"]
    assert {path.name: path.read_bytes() for path in held.iterdir() if path.is_file()} == before


def test_mistakes_before_any_cell_leave_nothing(run: Sweep, tmp_path: Path, capsys):
    for wrong in (["drafter=ngram,ngrm"], ["drafter=ngram", "drafter.lenght=1,2"], ["drafter=ngram", "foo=1,2"]):
        assert run(*wrong) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("specdec: ")
    assert not list(tmp_path.iterdir())


def test_a_failed_check_of_a_cell_is_in_the_exit_status(run: Sweep, monkeypatch, capsys):
    different = lossless.Check(True, equal=False, position=0, gap=1.0, tie=False)
    monkeypatch.setattr(lossless, "compare", lambda *_: different)
    assert run("drafter=ngram", LENGTHS) == 3
    assert "the losslessness check failed for ngram (" in capsys.readouterr().err
    assert table()[0]["unequal"] == ["ngram"]


def test_cells_are_named_by_their_overrides():
    names = {sweep.name_of(o) for o in (["a.b=1", "c=2"], ["a.b=1", "c=3"], ["a.c=1", "b=2"], ["a.b=1", "+c=2"])}
    assert len(names) == 4
    assert sweep.name_of(["c=2", "a.b=1"]).partition(".")[2] == sweep.name_of(["a.b=1", "c=2"]).partition(".")[2]
    assert sweep.name_of(["a.b=1", "target.name=/some/where"]).startswith("b-1.")
    assert sweep.name_of(["target.name=/some/where"]).isalnum()
    strange = sweep.name_of(["only=[a, 'b c']", "x=" + "y" * 300])
    assert len(strange) < 100
    assert not set(strange) & set("/ '[],=")


def test_the_number_a_search_makes_large():
    entry = {"speedup": {"ratio": 1.5, "label": ""}}
    again = {"speedup": {"ratio": 1.01, "label": "plain again"}}
    assert sweep.speedup_of({"methods": [{"speedup": None}, {"speedup": {"ratio": 2.0}}, entry, again]}) == 1.5
    assert sweep.speedup_of({"methods": [{"speedup": None}]}) is None
    failed, lossy = ({"speedup": {"ratio": 9.0, "label": label}} for label in ("failed check", "not lossless"))
    assert sweep.speedup_of({"methods": [entry, failed]}) is None, "a search must not find what writes another text"
    assert sweep.speedup_of({"methods": [entry, lossy]}) == 9.0


def test_a_failed_cell_has_no_number(tmp_path: Path):
    def fail() -> dict[str, Any]:
        raise MemoryError

    assert sweep.run_cell(tmp_path, ["a=1"], fail) == 0
    (cell,) = sweep.cells(tmp_path.parent, [])[:1]
    assert (cell.status, cell.error, cell.overrides) == ("failed", "MemoryError", ["a=1"])


def needs(plugin: str, extra: str) -> None:
    reason = f'hydra-{plugin} is not installed: pip install "specdec[{extra}]"'
    pytest.importorskip(f"hydra_plugins.hydra_{plugin.replace('-', '_')}", reason=reason)


@pytest.fixture
def _no_workers_left() -> Iterator[None]:
    """joblib keeps its processes, in the folder where they began, for the next sweep."""
    yield
    if (loky := sys.modules.get("joblib.externals.loky")) is not None:
        loky.get_reusable_executor().shutdown(wait=True)


RAY = ["+hydra.launcher.ray.init.num_cpus=1", "+hydra.launcher.ray.init.include_dashboard=false"]


@pytest.mark.usefixtures("_no_workers_left")
@pytest.mark.parametrize(
    ("launcher", "plugin", "extra", "settings", "statuses"),
    [
        ("cores", "joblib-launcher", "launchers", [], {3: "done"}),  # each process loads torch: seconds
        pytest.param(
            *("cores", "joblib-launcher", "launchers", [], {2: "done", 0: "failed", 3: "done"}), marks=pytest.mark.slow
        ),
        ("submitit_local", "submitit-launcher", "launchers", [], {3: "done"}),
        ("ray", "ray-launcher", "ray", RAY, {0: "failed", 3: "done"}),
    ],
)
def test_other_launchers_do_the_same(
    launcher: str, plugin: str, extra: str, settings: list[str], statuses: dict[int, str], run: Sweep, capfd
):
    """What a cell shows is in its folder, its command line in its provenance; and a sweep may change its launcher."""
    needs(plugin, extra)
    failures = list(statuses.values()).count("failed")
    lengths = f"drafter.length={','.join(map(str, statuses))}"
    assert run(f"hydra/launcher={launcher}", *settings, "drafter=ngram", lengths) == (5 if failures else 0)
    assert [row["status"] for row in table()] == list(statuses.values())
    cell = folder_of("drafter.length=3")
    assert "Measuring" in (cell / sweep.LOG).read_text()
    argv = json.loads((cell / "provenance.json").read_text())["argv"]
    assert argv[0] == "specdec run"
    assert "drafter.length=3" in argv
    assert Path("sweep/results.parquet").exists()
    if failures:
        assert "ngram needs" in (folder_of("drafter.length=0") / sweep.ERROR).read_text().splitlines()[0]
        (folder_of("drafter.length=0") / sweep.ERROR).unlink()
    assert yaml.safe_load(Path("sweep/sweep.yaml").read_text())[0]["hydra"] == [f"hydra/launcher={launcher}", *settings]
    capfd.readouterr()
    assert main(["run", "resume=sweep", "hydra/launcher=basic"]) == (5 if failures else 0)
    assert capfd.readouterr().out.count(": done before") == len(statuses) - failures


@pytest.mark.parametrize(
    ("chosen", "plugin", "extra"),
    [
        ("hydra/launcher=cores", "joblib-launcher", "launchers"),
        ("hydra/launcher=slurm", "submitit-launcher", "launchers"),
        ("hydra/launcher=ray_cluster", "ray-launcher", "ray"),
        ("hydra/sweeper=tree_search", "optuna-sweeper", "search"),
    ],
)
def test_our_settings_fit_the_plug_ins(chosen: str, plugin: str, extra: str, capsys):
    needs(plugin, extra)
    assert main(["run", "--cfg", "hydra", chosen]) == 0
    assert f"hydra_{plugin.replace('-', '_')}." in capsys.readouterr().out


def test_a_search_makes_the_speed_up_large_and_goes_on(run: Sweep, draft: Path, monkeypatch, capsys):
    needs("optuna-sweeper", "search")
    search = ["hydra/sweeper=tree_search", "hydra.sweeper.n_trials=3"]
    assert run(*search, "drafter=draft_model", f"drafter.model.name={draft}", "tree=best_first") == 0
    found = yaml.safe_load(Path("sweep/optimization_results.yaml").read_text())
    assert found["best_value"] == max(row["speedup"] for row in table())
    assert set(found["best_params"]) == {"tree.max_nodes", "tree.depth", "tree.top_k"}
    monkeypatch.setattr(measure, "run_cell", None)
    assert main(["run", "resume=sweep"]) == 0
    assert capsys.readouterr().out.count(": done before") == 3


COMMAND = [sys.executable, "-m", "specdec.experiments.cli", "run"]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(loading.PACKAGE.parent), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_serves_every_request_once(own: list[str], tmp_path: Path):
    """SIGKILL at arbitrary moments, start-up included; what was written before a kill stays as it was."""
    swept = [*own, "drafter=ngram", "drafter.length=2,3,4", "measure.repeats=20", "measure.steps=false"]
    arguments, kept, kills = ["-m", *swept], b"", 0
    files = lambda: sorted((tmp_path / "sweep").glob("*/requests.jsonl"))  # noqa: E731
    for wait in (0.0, 0.4, 1.1, 0.2, 0.9, 2.0):
        child = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
        before, end = len(b"".join(f.read_bytes() for f in files())), time.monotonic() + 240
        while child.poll() is None and time.monotonic() < end:
            if len(b"".join(f.read_bytes() for f in files())) > before:
                time.sleep(wait)
                break
            time.sleep(0.02)
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        now = b"".join(f.read_bytes()[: f.read_bytes().rfind(b"\n") + 1] for f in files())
        assert set(kept.splitlines()) <= set(now.splitlines())
        kept, arguments = now, ["-m", "resume=sweep"]
    assert kills
    subprocess.run([*COMMAND, "-m", "resume=sweep"], cwd=tmp_path, env=environment(), check=True)
    rows = [row for file in files() for row in read_rows(file)]
    assert len(files()) == 3
    assert all(len(read_rows(f)) == len({key_of(row) for row in read_rows(f)}) == 40 for f in files())
    assert set(kept.splitlines()) <= {json.dumps(row).encode() for row in rows}
    assert [row["status"] for row in table(tmp_path / "sweep")] == ["done"] * 3


@pytest.mark.slow
def test_two_processes_at_one_sweep_share_its_cells(own: list[str], tmp_path: Path):
    command = [*COMMAND, "-m", *own, "drafter=ngram", "drafter.length=2,3,4,5", "measure.repeats=10"]
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE) for _ in range(2)]
    shown = [child.communicate()[0].decode() for child in both]
    assert [child.returncode for child in both] == [0, 0]
    names = [row["cell"] for row in table(tmp_path / "sweep")]
    assert all(sum(text.count(f"{name}: done\n") for text in shown) >= 1 for name in names)
    for name in names:
        rows = read_rows(tmp_path / "sweep" / name / "requests.jsonl")
        assert len(rows) == len({key_of(row) for row in rows}) == 20
