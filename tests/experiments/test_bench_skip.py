"""`specdec bench skip`: the share is that of plain forwards, the search finds what is known, and the file."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from specdec import loading
from specdec.drafters.early_exit import EarlyExit
from specdec.experiments.bench import skip as part
from specdec.experiments.bench.skip import Matchness
from specdec.experiments.bench.subsets import Subset, search, spread
from specdec.experiments.cli import main

from ..drafters.test_early_exit import Reference, deep_model
from ..models import make_model, plain_text, ragged_batch

PROMPTS = [[5, 6, 7, 5, 6], [11], [2, 3, 2, 3, 2, 3, 2], [9, 8], [4] * 12]
LENGTHS = [9, 4, 2, 7, 12]


def unheard(*_: object) -> None:
    """Nobody listens."""


def texts(model: PreTrainedModel, count: int) -> list[tuple[list[int], list[int]]]:
    return [(p, plain_text(model, p, n)) for p, n in zip(PROMPTS[:count], LENGTHS[:count], strict=True)]


def without_effect(layers: int, *idle: int) -> PreTrainedModel:
    """A model of so many layers, some of which add nothing."""
    model = make_model(num_hidden_layers=layers, dtype=torch.float64, initializer_range=0.2)
    with torch.no_grad():
        for i in idle:
            model.model.layers[i].self_attn.o_proj.weight.zero_()
            model.model.layers[i].mlp.down_proj.weight.zero_()
    return model


# --- scores


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_the_share_is_that_of_plain_forwards(architecture: str, count: int) -> None:
    """Place by place: the whole model reads the text, then its layers without some the next token. Windows are shorter
    than the texts; sets come after each other in the same places."""
    model = deep_model(architecture, vocab_size=40)
    known = texts(model, count)
    matchness = Matchness(model, known)
    assert matchness.places == sum(len(text) - 1 for _, text in known)
    shares = []
    for skip in ((1, 2), (0,), (0, 1, 3), (3,)):
        reference = Reference(model, list(skip))
        hits = [
            int(reference(prompt + text[:i], [text[i]]).argmax()) == text[i + 1]
            for prompt, text in known
            for i in range(len(text) - 1)
        ]
        shares.append(sum(hits) / len(hits))
        assert matchness(skip) == pytest.approx(shares[-1], abs=1e-12)
    assert len(set(shares)) > 1
    assert matchness((1, 2)) == pytest.approx(shares[0], abs=1e-12), "a set leaves nothing behind"


@pytest.mark.parametrize(
    ("layers", "idle", "trials"), [(8, (1, 2), 20), (8, (3, 6), 20), (10, (2, 3, 7), 40), (10, (0, 4, 9), 40)]
)
def test_layers_that_do_nothing_are_found(layers: int, idle: tuple[int, ...], trials: int) -> None:
    """Among 28 sets or 120, some of which are looked at."""
    model = without_effect(layers, *idle)
    scores = search(Matchness(model, texts(model, 5)), layers, len(idle), trials, 0, unheard)
    best, *others = scores.items()
    assert best == (idle, 1.0)
    assert all(share < 1 for _, share in others)
    ids, mask, _ = ragged_batch((5, 9))
    out = specdec.generate(model, ids, mask, drafter=EarlyExit(skip=best[0]), max_new_tokens=31, eos_token_id=[])
    assert out.stats.accept_lengths == [[5] * 6] * 2


def test_the_best_is_told_where_it_was_not_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets are scored on every other text, and what comes out on the others."""
    model = without_effect(6)
    known = texts(model, 5)
    monkeypatch.setattr(loading, "load_model", lambda *_: model)
    monkeypatch.setattr(part, "_texts", lambda *_: known)
    measured = part.measure_skip(part.Settings(layers=2, trials=15), unheard)
    searched, held_out = Matchness(model, [known[i] for i in (0, 2, 4)]), Matchness(model, [known[1], known[3]])
    every: dict[Subset, float] = {members: searched(members) for members in itertools.combinations(range(6), 2)}
    assert [measured["matchness"], measured["spread"]] == [round(max(every.values()), 4), round(every[spread(6, 2)], 4)]
    assert {tuple(members): score for score, members in measured["best"]} == {
        members: round(score, 4) for members, score in every.items()
    }
    chosen = tuple(measured["skip"])
    assert every[chosen] == max(every.values())
    others = measured["held_out"]
    assert others["matchness"] == round(held_out(chosen), 4) != measured["matchness"]
    assert others["spread"] == round(held_out(spread(6, 2)), 4) != measured["spread"]
    assert (measured["places"], others["places"]) == (8 + 1 + 11, 3 + 6)


# --- search


def hard(seed: int, things: int = 24) -> dict[Subset, float]:
    """What every thing costs, and some pairs more than both."""
    chance = random.Random(seed)
    costs: dict[Subset, float] = {(i,): chance.random() for i in range(things)}
    costs |= {pair: chance.random() for pair in itertools.combinations(range(things), 2) if chance.random() < 0.1}
    return costs


@pytest.mark.parametrize("seed", range(3))
def test_better_than_chance(seed: int) -> None:
    """Among 735,471 sets of 8 out of 24, 150 of which are looked at: better than the best of a hundred times as many
    random ones."""
    costs = hard(seed)

    def score(members: Subset) -> float:
        within = (cost for things, cost in costs.items() if set(things) <= set(members))
        return 1 / (1 + sum(within))

    found = next(iter(search(score, 24, 8, 150, seed, unheard).values()))
    chance = random.Random(seed)
    assert found > max(score(tuple(chance.sample(range(24), 8))) for _ in range(15_000))


def test_sets_are_new_and_the_same_for_a_seed() -> None:
    def sets(seed: int, trials: int, things: int = 9, count: int = 4) -> list[Subset]:
        looked_at: list[Subset] = []

        def score(members: Subset) -> float:
            looked_at.append(members)
            return float(sum(members) % 7)

        search(score, things, count, trials, seed, unheard)
        return looked_at

    first = sets(1, 40)
    assert first == sets(1, 40)
    assert first != sets(2, 40)
    assert first == sets(1, 60)[:40]
    assert first[0] == spread(9, 4) == (1, 3, 5, 7)
    assert len(set(first)) == 40
    assert all(len(set(members)) == 4 and list(members) == sorted(members) for members in first)
    assert sorted(sets(0, 500, 5, 2)) == list(itertools.combinations(range(5), 2)), "all there are"
    assert sets(0, 9, 3, 1)[0] == (1,)
    assert sorted(sets(0, 9, 2, 1)) == [(0,), (1,)]


def test_what_is_told() -> None:
    told: list[tuple[int, Subset, float]] = []
    scores = search(lambda members: float(members[0]), 6, 2, 12, 0, lambda *args: told.append(args))
    assert [number for number, _, _ in told] == list(range(1, 13))
    assert [score for _, _, score in told] == sorted(score for _, _, score in told)
    assert told[-1][1:] == next(iter(scores.items()))
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


# --- the command


def test_the_command_writes_what_early_exit_takes(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made" / "skip.json"
    settings = [f"target={target}", "prompts=4", "tokens=8", "trials=9", f"output={file}"]
    assert main(["bench", "skip", *settings]) == 0
    printed = capsys.readouterr().out
    measured = json.loads(file.read_text())
    assert json.loads(printed.splitlines()[-1]) == {
        "output": str(file), "skip": measured["skip"], "matchness": measured["matchness"],
        "held_out": measured["held_out"],
    }  # fmt: skip
    assert measured["layers"] == measured["sets"] == 2  # each of the two alone
    assert [[measured["matchness"], measured["skip"]], *measured["best"][1:]] == measured["best"]
    assert measured["spread"] in [score for score, _ in measured["best"]]
    assert measured["places"] == measured["held_out"]["places"] == 2 * 7
    command = f"drafter=early_exit 'drafter.skip=[{measured['skip'][0]}]'"
    assert command in printed
    assert EarlyExit(skip=measured["skip"]).skip == measured["skip"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("layers=2", "has 2, so expected 1 to 1"),
        ("layers=x", "layers=x; expected a whole number above 0, or 0"),
        ("tokens=1", "tokens=1; expected at least 2"),
        ("prompts=1", "after 1 of 1 prompts; expected at least 2, one to search on"),
        ("tokens=500", "has 160 positions"),
        ("trials=0", "trials=0; expected a whole number above 0"),
        ("questions=nowhere.jsonl", "no file 'nowhere.jsonl'"),
    ],
)
def test_refuses(argument: str, message: str, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "skip", f"target={target}", argument]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
