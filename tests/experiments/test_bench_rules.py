"""`specdec bench rules`: rules against their plain steps, what is timed, and the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec import noise, registry
from specdec.acceptance.rejection import Rejection
from specdec.experiments.bench import plain_rules, rules
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


def made(kind: tuple[str, str], nodes: int = 12, batch: int = 5, vocab: int = 60) -> list[rules.Batch]:
    """Trees as they are timed."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(batch, nodes, vocab, generator=generator) * 2
    return rules._batches(rules.Settings(nodes=nodes), *kind, logits, logits + logits.roll(1, -1) / 2)


KINDS = [(name, kind) for name, kinds in rules.JUDGED.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_rule_that_reads_other_logits_is_wrong(name: str, kind: tuple[str, str]) -> None:
    """By half: in one of 20 sequences at least that shows. No choice of these happens to be as close as rounding."""
    rule = registry.build("acceptance", name)

    class Wrong:
        lossless, _fits = rule.lossless, getattr(rule, "_fits", None)

        def __call__(self, tree: Any, logits: Any, sampling: Any) -> Any:
            return rule(tree, logits * 1.5, sampling)

    wrong: Any = Wrong()
    batches_made = made(kind)
    assert sum(rules.check(name, rule, each)[1] for each in batches_made) == 0
    nodes = [plain_rules.Nodes(*each.alone(b)) for each in batches_made for b in range(5)]
    for each in nodes:
        rules.plain(name, rule, batches_made[0].tree)(each)
    assert not any(each.close for each in nodes)
    with pytest.raises(ValueError, match=f"{name} accepts the nodes .*; expected"):
        sum(rules.check(name, wrong, each)[1] for each in batches_made)


@pytest.mark.parametrize(("off", "tie"), [(2e-6, True), (1e-3, False)])
def test_a_choice_that_rounding_makes_is_a_tie(off: float, tie: bool) -> None:
    """The draft gives the child so much that it is just accepted; the rule sees a little more and refuses it."""
    sampler = Sampler(1, VOCAB, CPU)
    sampler.start(0, SamplingParams(temperature=1.0, seed=5), [0])
    position = torch.tensor([7], dtype=torch.int32)
    tree, logits = TokenTree.chain(torch.tensor([[0, 1]])), torch.zeros(1, 2, VOCAB)
    keys = sampler.at(position, 2, [0]).keys(noise.ACCEPT_STREAM, 0)
    offered = 1 / VOCAB / float(noise.uniform(keys, 1)) / (1 + off / 2)
    assert offered < 1
    draft = torch.full((1, 2, VOCAB), (1 - offered) / (VOCAB - 1))
    draft[..., 1] = offered
    tree = TokenTree(tree.tokens, tree.parents, tree.sizes, draft)

    class Rounding(Rejection):
        def __call__(self, tree: Any, logits: Any, sampling: Any) -> Any:
            more = TokenTree(tree.tokens, tree.parents, tree.sizes, tree.draft_probs * (1 + off))
            return Rejection()(more, logits, sampling)

    batch = rules.Batch(tree, logits, sampler, [sampler], position)
    assert rules.check("rejection", Rejection(), batch) == (1.0, 0)
    if tie:
        assert rules.check("rejection", Rounding(), batch) == (0.0, 1)
    else:
        with pytest.raises(ValueError, match=r"rejection accepts the nodes \[0\] .*; expected \[0, 1\]"):
            rules.check("rejection", Rounding(), batch)


def test_close_choices() -> None:
    """Of tokens, of a threshold, and of paths: those that a share of 1e-5 would turn, and those that it would not."""
    sampler = Sampler(1, VOCAB, CPU)
    sampler.start(0, SamplingParams(temperature=1.0, seed=4), [0])

    def nodes(*probs: float) -> plain_rules.Nodes:
        """A root with children 0 and 1."""
        tree = TokenTree.from_lists([([2, 0, 1], [-1, 0, 0])])
        logits = torch.tensor([*probs, *[1e-9] * (VOCAB - len(probs))]).log().expand(1, 3, VOCAB)
        return plain_rules.Nodes(tree, logits, sampler.at(torch.tensor([7], dtype=torch.int32), 3, [0]))

    noises = noise.gumbel(sampler.at(torch.tensor([7]), 3, [0]).keys(noise.RESIDUAL_STREAM, 0), VOCAB)[0]
    even = (-noises).exp()  # weights at which every token is as good as drawn
    for first, second, close in ((1.0, 1 - 3e-6, True), (1.0, 0.999, False), (1 - 3e-6, 1.0, True)):
        each = nodes(0.5, 0.5)
        assert each.draw(torch.tensor([first, second, 0, 0, 0]) * even, 0) == int(second > first)
        assert each.close == close
        each = nodes(first, second)
        assert each.likeliest(0) == int(second > first)
        assert each.close == close
    for least, close in ((0.6 * (1 + 3e-6), True), (0.6 * (1 - 3e-6), True), (0.61, False), (0.59, False)):
        each = nodes(0.6, 0.4)
        path, _ = plain_rules.deepest(lambda probs, least=least: probs >= least)(each)  # type: ignore[misc]
        assert path == ([0, 1] if least < 0.6 else [0])
        assert each.close == close
    for first, close in ((0.5 + 1e-6, True), (0.51, False)):
        each = nodes(first, 1 - first)
        assert plain_rules.deepest(lambda probs: probs >= 0.1)(each)[0] == [0, 1]
        each.close = False
        plain_rules.deepest(lambda probs: probs >= 0.1)(each)
        assert each.close == close


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_plain_steps_stay_on_the_device_of_the_logits(name: str, kind: tuple[str, str]) -> None:
    """A tensor that is made without naming a device is made where there are no contents, and cannot be used."""
    each = made(kind)[0]
    rule = registry.build("acceptance", name)
    expected = rules.plain(name, rule, each.tree)(plain_rules.Nodes(*each.alone(2)))
    with torch.device("meta"):
        assert rules.plain(name, rule, each.tree)(plain_rules.Nodes(*each.alone(2))) == expected


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
        assert row["ties"] == 0
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
