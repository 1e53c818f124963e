"""benchmarks/peers.py: which figures of a run it sets against each other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[3] / "benchmarks" / "peers.py"


@pytest.fixture
def peers() -> Any:
    spec = importlib.util.spec_from_file_location("peers", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_of_the_same_prompts(peers, tmp_path, capsys):
    """vLLM takes 1.05 times our time for plain decoding, half of it for prompt lookup."""
    names = [f"{engine}{drafter}" for engine in ("", "vllm_") for drafter in peers.DRAFTERS]
    seconds = {"vllm_none": 2.1, "vllm_ngram": 1.0}
    rows = [
        {"method": name, "question_id": i, "repeat": r, "new_tokens": 10, "seconds": seconds.get(name, 2.0) * (i + 1)}
        for r in range(2)
        for i in range(3)
        for name in names
    ]
    metrics = {"tpot": {"p50": 0.2}, "mean_accepted_length_pooled": 1.5}
    entries = [{"name": n, "metrics": metrics, "lossless": {"verdict": "yes"}, "speedup": None} for n in names]
    twice = {"ratio": 1.0, "low": 0.99, "high": 1.01}
    summary = {"methods": [*entries, {**entries[0], "name": "none_again", "speedup": twice}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "provenance.json").write_text("{}")
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = peers.compare(tmp_path, ["vllm"])
    found = {pair["drafter"]: pair for pair in result["pairs"]}
    tokens, spent = zip(*peers.totals(rows, "vllm_none"), strict=True)
    assert tokens == (20, 20, 20)
    assert spent == pytest.approx((4.2, 8.4, 12.6))
    ratios = {name: pair["tokens_per_second_ratio"]["ratio"] for name, pair in found.items()}
    assert ratios == pytest.approx({"none": 1.05, "ngram": 0.5, "draft_model": 1.0})
    assert {name: pair["reached"] for name, pair in found.items()} == {
        "none": True,
        "ngram": False,
        "draft_model": True,
    }
    peers.show(result)
    assert "measured twice: 1.000 [0.990, 1.010]" in capsys.readouterr().out
