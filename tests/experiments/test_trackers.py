"""Trackers: what was logged can be read back, and a failing one stops nothing."""

from __future__ import annotations

import importlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specdec.experiments.trackers.base import Guarded, Tracker
from specdec.experiments.trackers.noop import Noop
from specdec.experiments.tracking import track_request, track_summary
from specdec.metrics import DECODING_PHASES

from .conftest import read_rows


def test_jsonl_holds_everything(specdec_run):
    code, directory = specdec_run("drafter=ngram", "tracker=jsonl")
    assert code == 0
    rows = read_rows(directory / "metrics.jsonl")
    kinds = [row["kind"] for row in rows]
    assert kinds[0] == "start"
    assert kinds[-1] == "finish"
    assert rows[0]["config"]["measure"]["max_new_tokens"] == 8
    table = next(row for row in rows if row["kind"] == "table")
    assert [line[0] for line in table["rows"]] == ["none", "ngram"]
    assert rows[-1]["summary"]["ngram/lossless"] == "yes"
    assert rows[-1]["summary"]["ngram/speedup/ratio"] > 0
    requests = [row for row in read_rows(directory / "requests.jsonl") if row["method"] == "ngram"]
    spread = [row for row in rows if row["kind"] == "histogram" and row["name"] == "ngram/accept_lengths"]
    assert len({row["step"] for row in spread}) == len(spread) == len(requests)
    for found, request in zip(spread, requests):
        assert [n for n, count in found["counts"] for _ in range(count)] == sorted(request["accept_lengths"])
    (pooled,) = (row for row in rows if row.get("name") == "ngram/accept_lengths_all")
    assert sum(count for _, count in pooled["counts"]) == sum(request["steps"] for request in requests)


def records(log: bytes) -> Iterator[bytes]:
    """Of a .wandb file: seven bytes, then LevelDB's log format, blocks of 32 KiB of (checksum, length, kind, data)."""
    place, whole = 7, b""
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", log[place + 4 : place + 7])
        whole += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def read_back(directory: Path) -> dict[str, Any]:
    """What an offline run of wandb wrote, which is what `wandb sync` uploads."""
    wandb = pytest.importorskip("wandb")
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    wandb.teardown()  # as at the end of a process: what is buffered is written
    (file,) = (directory / "wandb").glob("offline-run-*/run-*.wandb")
    found: dict[str, Any] = {"run": None, "config": {}, "summary": {}, "history": [], "artifacts": [], "exit": None}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "summary":
            update = record.summary.update
            found["summary"] |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in update}
        elif kind == "history":
            items = record.history.item
            found["history"].append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif kind == "artifact":
            found["artifacts"].append(record.artifact)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def test_wandb_offline_can_be_read_back(specdec_run, monkeypatch):
    """Config, curves, histograms per request, the leaderboard, figures, the run's directory and the summary."""
    monkeypatch.delenv("WANDB_MODE", raising=False)  # offline without being told
    code, directory = specdec_run("drafter=ngram", "tracker=wandb")
    assert code == 0
    found = read_back(directory)
    assert found["config"]["name"] == "run"
    assert found["config"]["measure"]["max_new_tokens"] == 8
    assert found["exit"] == 0
    logged = {key for row in found["history"] for key in row}
    assert {"none/tpot", "ngram/tpot", "ngram/mean_accepted_length"} <= logged
    media = {k.removesuffix("/_type"): row[k] for row in found["history"] for k in row if k.endswith("/_type")}
    assert media["leaderboard"] == "table-file"
    assert media["ngram/accept_lengths"] == media["ngram/accept_lengths_all"] == "histogram"
    assert media["speedup"] == media["acceptance_by_depth"] == "image-file"
    requests = [row for row in read_rows(directory / "requests.jsonl") if row["method"] == "ngram" and row["steps"]]
    spread = [row for row in found["history"] if "ngram/accept_lengths/values" in row]
    assert [sum(row["ngram/accept_lengths/values"]) for row in spread] == [row["steps"] for row in requests]
    assert [row["ngram/mean_accepted_length"] for row in spread] == pytest.approx(
        [sum(row["accept_lengths"]) / row["steps"] for row in requests]
    )
    assert found["summary"]["ngram/lossless"] == "yes"
    (artifact,) = (artifact for artifact in found["artifacts"] if artifact.type == "result")
    names = {entry.path for entry in artifact.manifest.contents}
    kept = "config.yaml provenance.json requests.jsonl steps.jsonl summary.json report.html answers/ngram.jsonl"
    assert set(kept.split()) <= names
    assert not {name for name in names if name.startswith(("wandb/", "."))}
    (table,) = (directory / "wandb").glob("offline-run-*/files/media/table/leaderboard*.json")
    assert [row[0] for row in json.loads(table.read_text())["data"]] == ["none", "ngram"]
    assert found["run"].run_group == ""


def test_the_cells_of_a_sweep_are_a_group(specdec_run, tmp_path):
    folder = tmp_path / "sweeps" / "lengths"
    assert specdec_run("-m", "drafter=ngram", "tracker=wandb", "data.limit=1", f"hydra.sweep.dir={folder}")[0] == 0
    (cell,) = (path for path in folder.iterdir() if path.is_dir())
    run = read_back(cell)["run"]
    assert run.run_group == "lengths"
    assert run.display_name == cell.name


def test_a_missing_wandb_is_one_line(specdec_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, directory = specdec_run("drafter=ngram", "tracker=wandb")
    assert code == 0
    assert (directory / "summary.json").exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert 'pip install "specdec[experiments]"' in line


CALLS = [name for name in vars(Tracker) if not name.startswith("_") and name != "wants_images"]


@pytest.mark.parametrize("error", [OSError("no\nroom"), SystemExit(1)], ids=["error", "exit"])
@pytest.mark.parametrize("call", CALLS)
def test_a_tracker_that_fails_at_any_call_stops_nothing(call: str, error: BaseException, monkeypatch, tmp_path, capsys):
    """Through all that a run and a training give a tracker, with each of its calls failing."""
    called = []

    class Counting(Noop):
        wants_images = True

    def fail(*_: object) -> None:
        called.append(call)
        raise error

    monkeypatch.setattr(Counting, call, fail)
    row = {"method": "ngram", "tpot": 1.0, "ttft": 1.0, "seconds": 1.0, "new_tokens": 2, "steps": 1}
    row["accept_lengths"] = [2]
    rates = {"acceptance_by_depth": {"unconditional": [0.5]}, "phase_share": dict.fromkeys(DECODING_PHASES, 0.2)}
    entry = {"name": "ngram", "lossless": {"verdict": "yes"}, "baseline": "none", "requests": 1, "by_category": {}}
    entry |= {"speedup": {"ratio": 1.0, "low": None, "high": None, "label": "", "noise": None}}
    entry |= {"metrics": {**rates, "mean_accepted_length_pooled": 2.0, "tokens_per_second": 1.0}}
    tracker = Guarded(Counting())
    tracker.start(tmp_path, "name", {})
    track_request(tracker, row, 1)
    track_summary(tracker, {"methods": [entry]}, [row], tmp_path)
    assert called == [call]
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"tracker counting failed in {call} and is left out" in line


def test_a_failing_tracker_is_told_of_once(capsys):
    class Broken(Noop):
        def log(self, values, step):
            raise OSError("disk\nfull")

    tracker = Guarded(Broken())
    tracker.start(Path(), "name", {})
    tracker.log({"a": 1.0}, 1)
    tracker.log({"a": 1.0}, 2)
    tracker.finish({})
    assert not tracker.wants_images
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "disk full" in line


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'matplotlib'"), OSError("No space left")])
def test_figures_that_cannot_be_drawn_stop_nothing(error: Exception, monkeypatch, tmp_path, capsys):
    """Neither the run nor the tracker's other calls."""

    class Kept(Noop):
        wants_images = True

        def __init__(self) -> None:
            self.calls: list[str] = []

        def finish(self, summary: Any) -> None:
            self.calls.append("finish")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("specdec.experiments.figures.draw", fail)
    tracker = Kept()
    track_summary(Guarded(tracker), {"methods": []}, [], tmp_path)
    assert tracker.calls == ["finish"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"specdec: no figures for the tracker kept: {error}"
