"""`specdec bench retrieval`: which texts are looked up, in which datastores, and the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from specdec import registry
from specdec.drafters.retrieval import Retrieval
from specdec.experiments.bench.retrieval import PASSES, beginnings, time_lookups
from specdec.experiments.cli import main

from ..fakes import write_datastore

PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8]]


def test_beginnings_are_spread_over_all_prompts() -> None:
    every = [[1], [1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [6], [7], [7, 8]]
    assert beginnings(PROMPTS, 8, 3) == every
    assert beginnings(PROMPTS, 4, 3) == every[1::2]
    assert beginnings(PROMPTS, 1, 3) == [every[4]]
    with pytest.raises(ValueError, match="lookups=9; the shipped prompts have 8 beginnings"):
        beginnings(PROMPTS, 9, 3)


def test_what_is_timed_is_what_is_drafted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of our own: finding takes 1 or 3 microseconds by turns, the whole 2000."""
    drafter = Retrieval(write_datastore(tmp_path / "d", [[1, 2, 3, 4], [1, 2, 3, 5]], 80))
    now = [0]
    asked: list[list[int]] = []
    find, draft = drafter.datastore.find, drafter.draft

    def slow_find(text: list[int], shortest: int) -> tuple[int, int, int]:
        now[0] += 3000 if text[0] == 1 else 1000
        return find(text, shortest)

    def slow_draft(text: list[int], vocab_size: int) -> tuple[list[int], list[int]]:
        asked.append(text)
        drafted = draft(text, vocab_size)
        now[0] += 2_000_000 - 3000 * (text[0] == 1) - 1000 * (text[0] != 1)
        return drafted

    monkeypatch.setattr(drafter.datastore, "find", slow_find)
    monkeypatch.setattr(drafter, "draft", slow_draft)
    monkeypatch.setattr("specdec.experiments.bench.retrieval.time.thread_time_ns", lambda: now[0])
    texts = [[1, 2], [9, 9], [2, 3]]
    row = time_lookups(drafter, texts, 80)
    assert asked == texts * PASSES
    assert row == {
        "tokens": 10, "matched": 0.6667, "drafted": 3.0,
        "find": {"p50": 1.0, "p99": 3.0}, "lookup": {"p50": 2000.0, "p99": 2000.0},
    }  # fmt: skip


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped datastore, and one that is made."""
    pytest.importorskip("pydivsufsort")
    file = tmp_path / "made" / "retrieval.json"
    settings = ["packages=pytest,pluggy", "tokens=20000", "lookups=30", f"output={file}"]
    assert main(["bench", "retrieval", *settings]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == {"output": str(file), "datastores": 2}
    measured = json.loads(file.read_text())
    shipped, made = measured["datastores"]
    assert shipped["tokens"] == registry.build("drafter", "retrieval").datastore.tokens
    assert made["tokens"] == 20_000
    assert made["matched"] <= shipped["matched"] <= 1
    for row in (shipped, made):
        assert 0 < row["find"]["p50"] <= row["find"]["p99"]
        assert 0 < row["lookup"]["p50"] <= row["lookup"]["p99"]
    assert measured["provenance"]["config"]["lookups"] == 30
    assert measured["drafter"]["samples"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lookups=0"], "lookups=0; expected a whole number above 0"),
        (["lookup=5"], "Did you mean 'lookups'"),
        (["datastore=nowhere.bin"], "datastore 'nowhere.bin' does not exist"),
        (["packages=pluggy", "tokens=10000000"], "of pluggy have .* tokens; expected 10,000,000: name more packages"),
        (["packages=no-such-package", "tokens=5"], "'no-such-package' is not installed"),
    ],
)
def test_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "packages" in arguments[0]:
        pytest.importorskip("pydivsufsort")
    assert main(["bench", "retrieval", *arguments]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error)


def test_refuses_another_tokenizers_datastore(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "retrieval", f"target={target}"]) == 1
    assert "has another tokenizer than" in capsys.readouterr().err
