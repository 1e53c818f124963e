"""Trackers: what was logged can be read back, and a failing one stops nothing."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from specdec.experiments.trackers.base import Guarded
from specdec.experiments.trackers.noop import Noop

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


def test_wandb_offline_can_be_read_back(specdec_run, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    code, directory = specdec_run("drafter=ngram", "tracker=wandb")
    assert code == 0
    wandb.teardown()  # as at the end of a process: what is buffered is written
    (file,) = (directory / "wandb").glob("offline-run-*/run-*.wandb")
    config, summary, history, artifacts = {}, {}, [], []
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "summary":
            summary |= {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
        elif kind == "history":
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
        elif kind == "artifact":
            artifacts.append(record.artifact.name)
    logged = {key for row in history for key in row}
    assert config["name"] == "run"
    assert {"none/tpot", "ngram/tpot", "ngram/mean_accepted_length"} <= logged
    media = {key.removesuffix("/_type"): row[key] for row in history for key in row if key.endswith("/_type")}
    assert media["leaderboard"] == "table-file"
    assert media["ngram/accept_lengths"] == "histogram"
    assert media["speedup"] == "image-file"
    assert json.loads(summary["ngram/lossless"]) == "yes"
    assert any(name.startswith("report-html") for name in artifacts)
    (table,) = (directory / "wandb").glob("offline-run-*/files/media/table/leaderboard*.json")
    assert [row[0] for row in json.loads(table.read_text())["data"]] == ["none", "ngram"]


def test_a_missing_wandb_is_one_line(specdec_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, directory = specdec_run("drafter=ngram", "tracker=wandb")
    assert code == 0
    assert (directory / "summary.json").exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert 'pip install "specdec[experiments]"' in line


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
