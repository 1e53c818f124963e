"""`specdec bench rules`: rules against their plain steps, what is timed, and the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec import registry
from specdec.acceptance.rejection import Rejection
from specdec.experiments.bench import rules
from specdec.experiments.cli import main
from specdec.sampling import Sampler, SamplingParams
from specdec.tree.token_tree import TokenTree

from ..acceptance.test_walks import CPU, VOCAB, batches, chains, logits_for

PARAMS = [SamplingParams(), SamplingParams(temperature=0.7, seed=1), SamplingParams(temperature=1.3, top_k=3, seed=2)]
TINY = ["nodes=12", "context=9", "layers=1", "hidden=32", "mlp=32", "heads=4", "kv_heads=2", "seconds=0.01"]


@pytest.mark.parametrize("name", rules.JUDGED)
@given(data=st.data(), seed=st.integers(0, 1000), drawn=st.booleans(), replacement=st.booleans())
@settings(max_examples=25)
def test_rules_against_their_plain_steps(
    name: str, data: st.DataObject, seed: int, drawn: bool, replacement: bool
) -> None:
    """Ragged trees and empty slots, settings that differ by request, equal siblings, drafts without probability."""
    tree: TokenTree = data.draw(chains() if name == "block" else batches())
    logits, probs = logits_for(tree, seed), logits_for(tree, seed + 1)
    if drawn:
        probs = probs.masked_fill(logits_for(tree, seed + 2) > 2, -torch.inf).softmax(-1).nan_to_num(0.2)
        tokens = tree.tokens.clamp_max(2) if replacement else tree.tokens
        tree = TokenTree(tokens, tree.parents, tree.sizes, probs, replacement=replacement)
    samplers = [Sampler(1, VOCAB, CPU) for _ in range(tree.batch_size)]
    together = Sampler(tree.batch_size, VOCAB, CPU)
    for b in range(tree.batch_size):
        if tree.sizes[b]:
            together.start(b, PARAMS[(b + seed) % 3], [1, 2])
            samplers[b].start(0, PARAMS[(b + seed) % 3], [1, 2])
    positions = torch.arange(tree.batch_size).int() + 5
    batch = rules.Batch(tree, logits, together, samplers, positions)
    rules.check(name, registry.build("acceptance", name), batch)


@pytest.mark.parametrize("top_p", ["1.0", "0.9"])
def test_the_command_times_every_rule(top_p: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made" / "rules.json"
    assert main(["bench", "rules", "vocab=50,90", "batch=1,3", *TINY, f"top_p={top_p}", f"output={file}"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == {"output": str(file), "rows": 4 * 13}
    measured = json.loads(file.read_text())
    assert {row["rule"].split(",")[0] for row in measured["rows"]} == set(registry.names("acceptance"))
    assert {(row["vocab"], row["batch"]) for row in measured["rows"]} == {(50, 1), (50, 3), (90, 1), (90, 3)}
    for row in measured["rows"]:
        assert row["microseconds"] == sorted(row["microseconds"])
        assert row["rounds"] >= 5
        low, middle, high = (a / b for a, b in zip(row["microseconds"], reversed(row["verify"]), strict=True))
        assert row["share"][0] <= high * 1.01
        assert row["share"][2] >= low * 0.99
        assert middle > 0
        assert 0 <= row["accepted"] <= 11
    assert measured["provenance"]["config"]["vocab"] == "50,90"


def test_shares_of_one_round_and_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"verify": [1.0, 2.0, 4.0]}

    def by_turns(turns: dict[str, Any], seconds: float) -> dict[str, list[float]]:
        return {name: times.get(name, [0.05, 0.1, 0.2] if "drawn" in name else [0.06, 0.12, 0.24]) for name in turns}

    monkeypatch.setattr(rules, "by_turns", by_turns)
    small: dict[str, Any] = {"nodes": 5, "context": 3, "layers": 1, "hidden": 32, "mlp": 32, "heads": 4, "kv_heads": 2}
    measured = rules.measure_rules(rules.Settings(vocab="40", batch="2", **small), CPU)
    assert {tuple(row["share"]) for row in measured["rows"] if "drawn" in row["rule"]} == {(0.05, 0.05, 0.05)}
    verdicts = dict(zip((row["rule"] for row in measured["rows"]), rules.show(measured).columns[-1].cells, strict=True))
    assert all(verdict == ("reached" if "drawn" in rule else "missed") for rule, verdict in verdicts.items())


def test_a_wrong_rule_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = Rejection.__call__

    def wrong(self: Rejection, tree: Any, *given: Any) -> Any:
        return right(self, TokenTree(tree.tokens, tree.parents, tree.sizes), *given)

    monkeypatch.setattr(Rejection, "__call__", wrong)
    with pytest.raises(ValueError, match=r"rejection accepts the nodes .*; expected .*Nothing was timed"):
        rules.measure_rules(rules.Settings(vocab="60", batch="4", nodes=8, context=3, layers=1, hidden=32, mlp=32), CPU)


def test_numbers_with_commas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rules", "vocab=32k"]) != 0
    assert "vocab=32k; expected whole numbers above 0, with commas between" in capsys.readouterr().err
