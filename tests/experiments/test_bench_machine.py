"""`specdec bench machine`: what is moved and computed, by arithmetic; buffers beyond the caches; a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from specdec.experiments.bench import machine
from specdec.experiments.cli import main
from specdec.experiments.machine import device_name

CPU = torch.device("cpu")


def test_every_work_moves_and_computes_what_it_says():
    works = list(machine._works(CPU, torch.bfloat16, 1 << 20))
    read, copy, square, one, four = works[:5]
    assert (read.about, read.bytes, len(read.calls)) == ({"stream": "read"}, 1 << 20, 1)
    assert read.calls[0]().item() == (1 << 20) / 4, "a sum of ones reads every number"
    assert copy.bytes == 2 << 20, "what is copied is read and written"
    copied = copy.calls[0]()
    assert copied.numel() * copied.element_size() == 1 << 20
    assert copied.sum() == copied.numel()
    assert square.about == {"dtype": "bfloat16", "rows": 256, "inner": 256, "columns": 256}
    assert square.flops == 2 * 256**3
    assert square.calls[0]().shape == (256, 256)
    assert (one.bytes, one.flops) == (48 * 64 * 2, 2 * 48 * 64)
    assert (four.bytes, four.flops) == (48 * 64 * 2, 4 * 2 * 48 * 64)
    assert len(four.calls) * four.bytes >= 1 << 20, "the matrices together are a buffer's size"
    assert four.calls[0]().shape == (4, 48)
    assert four.calls[0]().dtype == torch.bfloat16
    assert not torch.equal(four.calls[0](), four.calls[1]()), "each call reads its own matrix"
    assert [w.about["dtype"] for w in works[2:]] == ["bfloat16"] * 5 + ["float32"] * 5


def test_float32_is_measured_once():
    works = list(machine._works(CPU, torch.float32, 1 << 20))
    assert [w.about.get("dtype") for w in works] == [None, None, *["float32"] * 5]


def test_rates_are_amounts_by_seconds():
    assert machine._rates(100, [4.0, 1.0, 2.0]) == {"best": 100, "p20": 35, "p50": 50, "p80": 80}


def test_a_square_grows_while_there_is_time(monkeypatch):
    monkeypatch.setattr(machine, "SIDE", {"cpu": 1024})
    for seconds, side in ((0.0, 1024), (1.0, 256)):
        monkeypatch.setattr(machine, "_seconds", lambda call, device, seconds=seconds: seconds)
        assert machine._square(CPU, torch.float32).about["rows"] == side


def test_buffers_outgrow_the_caches_and_leave_memory(monkeypatch):
    mebi = 1 << 20
    monkeypatch.setattr(machine, "BUFFER", {"cpu": 256 * mebi})

    def size(caches: int, free: int) -> int:
        return machine.buffer_bytes(CPU, caches * mebi, lambda device: free * mebi) // mebi

    assert size(caches=34, free=1 << 16) == 256
    assert size(caches=200, free=1 << 16) == 800, "four times the caches"
    assert size(caches=34, free=1200) == 100, "a twelfth of what is free"
    with pytest.raises(ValueError, match="too little for buffers that outgrow its caches"):
        size(caches=34, free=600)


def test_the_command_writes_a_file_and_shows_a_table(tmp_path: Path, capsys):
    file = tmp_path / "m" / "machine.json"
    assert main(["bench", "machine", f"output={file}", "dtype=float32", "seconds=0.01", "device=cpu"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert {*found["bandwidth"]} == {"read", "copy"}
    assert [p["rows"] for p in found["products"]] == [256, 1, 4, 16, 64]
    for rates in (*found["bandwidth"].values(), *found["products"]):
        assert 0 < rates["p20"] <= rates["p50"] <= rates["p80"] <= rates["best"]
    assert found["device"] == "cpu"
    assert found["dtype"] == "float32"
    assert found["rounds"] >= 5
    assert found["provenance"]["argv"]
    assert found["name"] == device_name(CPU)
    assert "GB/s" in shown
    assert "float32 16 x 64 x 48" in shown
    assert json.loads(shown.splitlines()[-1]) == {"output": str(file), "products": 5}


def test_the_targets_dtype_is_read_without_its_weights(tmp_path: Path):
    assert machine.dtype_of("tiny") == torch.bfloat16
    with pytest.raises(ValueError, match="nowhere"):
        machine.dtype_of(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("argument", "said"), [("dtype=float7", "unknown dtype"), ("target=tinny", "tinny"), ("seconds=0", "above 0")]
)
def test_mistakes_are_told(argument, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "machine", argument]) == 1
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
