"""Trees as large as they pay: what speculation may lose, what it must win, whose past decides, and the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec
from specdec import registry
from specdec.core import Drafter, DraftNeeds, TargetOutput, Verdict
from specdec.drafters.adaptive import Adaptive
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.hybrid import Hybrid
from specdec.drafters.lookahead import Lookahead
from specdec.drafters.ngram import NGram
from specdec.drafters.recycling import Recycling
from specdec.drafters.suffix import Suffix
from specdec.engine import Engine
from specdec.experiments.methods import make_methods
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import DraftNoise, SamplingParams
from specdec.tree.best_first import BestFirst
from specdec.tree.budget import StepCost
from specdec.tree.cost import CostCurve, Curve
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..fakes import Harness
from ..models import make_model, noisy_copy, own_texts, plain_text, ragged_batch

VOCAB = 40
PROMPTS = [[5, 6, 7, 5, 6], [1], [2, 3, 2, 3, 2, 3, 2], [9, 8], [4] * 12]
MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "curve.json"
STATIC = StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [1, 0, 0]])


class Chains:
    """Drafts chains of any tokens, and keeps what it was asked for."""

    takes_levels = True

    def __init__(self, nodes: int):
        self.needs, self.policy = DraftNeeds(max_nodes=nodes), chain(nodes - 1)
        self.asked: list[int] = []

    def open(self, capacity: int, max_length: int, device: torch.device) -> None:
        pass

    def start(self, state: None, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        pass

    def propose(self, state: None, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        self.asked.append(self.needs.max_nodes - 1 if levels is None else levels)
        return TokenTree.chain(torch.cat([roots[:, None], roots.new_zeros(len(roots), self.asked[-1])], 1))

    def observe(self, state: None, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        pass


class WholeChains(Chains):
    """Cannot leave levels out."""

    takes_levels = False


def model_steps(harness: Harness, cost: StepCost, steps: int) -> tuple[float, float, int]:
    """Modelled cost of steps and of as many of plain decoding, and the tokens written."""
    spent = plain = 0.0
    before = sum(map(len, harness.texts.values()))
    for _ in range(steps):
        tree = harness.step()
        inner: Any = harness.drafter.drafters[0]  # type: ignore[attr-defined]
        spent += cost(int(tree.sizes.sum()), inner.asked[-1], len(harness.texts))
        plain += cost.plain(len(harness.texts))
    return spent, plain, sum(map(len, harness.texts.values())) - before


@pytest.mark.parametrize("shared", [True, False], ids=["shared noise", "own noise"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(("curve", "level"), [(0.02, 0.0), (0.1, 0.0), (0.02, 0.2), (str(MEASURED), None)])
def test_what_never_matches_costs_under_five_percent(
    curve: Curve, level: float | None, batch: int, shared: bool
) -> None:
    """Counted in steps times their cost. A step writes as many tokens as plain decoding's here: one a sequence."""
    drafter = Adaptive(Chains(5), curve, level)
    harness = Harness(drafter, batch, VOCAB, SamplingParams(), shared, max_length=400)
    harness.acceptance = 0.0
    harness.enter(range(batch), PROMPTS[:batch])
    spent, plain, tokens = model_steps(harness, drafter.cost, 160)
    assert tokens == 160 * batch
    assert plain < spent < 1.05 * plain
    asked = drafter.drafters[0].asked  # type: ignore[attr-defined]
    assert asked[0] == 4
    assert asked.count(0) > 100
    assert sum(levels > 0 for levels in asked[80:]) >= 1  # it goes on trying


@pytest.mark.parametrize(
    ("acceptance", "batch"), [(0.05, 1), (0.05, 3), (0.3, 1), (0.5, 1), (0.7, 3), (0.9, 1), (0.97, 1)]
)
def test_as_good_as_the_better_of_all_and_nothing(acceptance: float, batch: int) -> None:
    drafter = Adaptive(Chains(9), 0.04, 0.05)
    harness = Harness(drafter, batch, VOCAB, SamplingParams(), True, max_length=9000)
    harness.acceptance = acceptance
    harness.enter(range(batch), PROMPTS[:batch])
    spent, _, tokens = model_steps(harness, drafter.cost, 500)
    plain = batch / drafter.cost.plain(batch)
    full = batch * sum(acceptance**depth for depth in range(9)) / drafter.cost(9 * batch, 8, batch)
    assert tokens / spent > 0.95 * max(plain, full)


def test_a_text_that_becomes_easy_is_noticed_and_one_that_becomes_hard_too() -> None:
    drafter = Adaptive(Chains(9), 0.04, 0.05)
    harness = Harness(drafter, 1, VOCAB, SamplingParams(), True, max_length=9000)
    harness.enter([0], PROMPTS[:1])
    rates = []
    for acceptance in (0.0, 0.95, 0.0, 0.95):
        harness.acceptance = acceptance
        model_steps(harness, drafter.cost, 120)
        spent, _, tokens = model_steps(harness, drafter.cost, 120)
        rates.append(tokens / spent)
    assert min(rates[::2]) > 0.9 / drafter.cost.plain(1)
    assert min(rates[1::2]) > 2.0


def test_every_slot_has_a_size_of_its_own() -> None:
    drafter = Adaptive(WholeChains(6), 0.05)
    harness = Harness(drafter, 3, VOCAB, SamplingParams(), True, max_length=900)
    decide = harness._decide

    def easy_in_slot_one(tree: TokenTree, slot: int) -> tuple[list[int], int]:
        harness.acceptance = 0.95 if slot == 1 else 0.0
        return decide(tree, slot)

    harness._decide = easy_in_slot_one  # type: ignore[method-assign]
    harness.enter([0, 1], PROMPTS[:2])
    sizes = torch.stack([harness.step().sizes for _ in range(60)])[20:].double().mean(0)
    assert sizes[1] > 4
    assert sizes[0] < 2.5
    assert sizes[2] == 0


def test_what_earlier_requests_have_shown_is_remembered_or_not() -> None:
    """Also that the credit for tries at the beginning is spent."""
    for remember in (True, False):
        drafter = Adaptive(Chains(5), 0.1, remember=remember, allowance=0.0)
        for begins in (True, False):
            harness = Harness(drafter, 1, VOCAB, SamplingParams(), True)
            harness.acceptance = 0.0
            harness.enter([0], PROMPTS[:1])
            sizes = [int(harness.step().sizes) for _ in range(30)]
            assert sum(size > 1 for size in sizes) in ((9, 10) if begins or not remember else (0,))


def test_levels_are_remembered_too() -> None:
    """Else a new text whose best tree is not a full one would get trees of one level."""
    drafter = Adaptive(Chains(9), 0.15, 0.05)
    asked = drafter.drafters[0].asked  # type: ignore[attr-defined]
    for _ in range(4):
        harness = Harness(drafter, 1, VOCAB, SamplingParams(), True)
        harness.acceptance = 0.7
        harness.enter([0], PROMPTS[:1])
        asked.clear()
        sizes = [int(harness.step().sizes) for _ in range(20)]
        assert asked == [size - 1 for size in sizes]
        assert sizes[10] > 2
    assert sizes[0] in range(3, 9)


@pytest.fixture
def knee(tmp_path: Path) -> Path:
    """A curve on which 16 rows are free, and all further ones are dear."""
    file = tmp_path / "knee.json"
    file.write_text('{"nodes": [1, 16, 32], "cost": [1.0, 1.01, 9.0]}')
    return file


def test_many_requests_leave_no_drafts_and_one_does() -> None:
    """But for tries, in a few slots at a time."""
    for slots in (1, 32):
        drafter = Adaptive(Chains(5), 0.2)
        harness = Harness(drafter, slots, VOCAB, SamplingParams(), True, max_length=9000)
        harness.acceptance = 0.6
        harness.enter(range(slots), [[slot, 1, 2] for slot in range(slots)])
        sizes = torch.stack([harness.step().sizes for _ in range(60)])[20:]  # [40, B]
        if slots == 1:
            assert float(sizes.double().mean()) > 2.5
        else:
            assert float((sizes == 1).double().mean()) > 0.97
            assert int((sizes > 1).sum(1).max()) <= 2


def test_rows_beside_make_trees_smaller_for_a_step(knee: Path) -> None:
    drafter = Adaptive(Chains(5), knee)
    harness = Harness(drafter, 2, VOCAB, SamplingParams(), True, max_length=9000)
    harness.acceptance = 0.6
    harness.enter([0, 1], PROMPTS[:2])
    for _ in range(40):
        harness.step()
    for rows, most, least in [(0, 5, 4), (30, 2, 1), (0, 5, 4)] * 3:
        if rows:
            drafter.beside(harness.state, rows)
        sizes = harness.step().sizes.tolist()
        assert least <= min(sizes), sizes
        assert sum(sizes) <= 2 * most, sizes


def test_under_its_own_noise_a_slot_decides_by_its_own_past_alone(knee: Path) -> None:
    """Other prompts beside it, which go another way, or are being read, change nothing: not even where seeds, and so
    noise, are equal."""

    def trace(
        neighbours: list[list[int]], others_acceptance: float, rows: int, curve: Curve
    ) -> list[tuple[int, bool, list[list[int]]]]:
        draft = DraftModel(make_model(vocab_size=VOCAB, dtype=torch.float64), STATIC)
        drafter = Adaptive(draft, curve, 0.05)
        harness = Harness(drafter, 3, VOCAB, SamplingParams(temperature=0.8, seed=3), False)
        decide = harness._decide

        def by_slot(tree: TokenTree, slot: int) -> tuple[list[int], int]:
            harness.acceptance = 0.5 if slot == 1 else others_acceptance
            return decide(tree, slot)

        harness._decide = by_slot  # type: ignore[method-assign]
        harness.enter([1], [PROMPTS[2]])
        if neighbours:
            harness.enter([0, 2], neighbours)
        seen = []
        for number in range(30):
            if rows and number % 3:
                drafter.beside(harness.state, rows)
            tree = harness.step()
            seen.append((int(tree.sizes[1]), tree.draft_probs is None, tree.paths(1)))  # rules draw otherwise if None
        return seen

    for curve in (0.05, knee):
        alone = trace([], 0.0, 0, curve)
        assert len({size for size, _, _ in alone}) > 2
        assert not any(fixed for _, fixed, _ in alone)
        others = [PROMPTS[0], PROMPTS[3]], [PROMPTS[1], PROMPTS[4]]
        assert alone == trace(others[0], 0.0, 0, curve) == trace(others[1], 1.0, 40, curve)


INNER: dict[str, Any] = {
    "draft_model, chain": lambda model: DraftModel(noisy_copy(model, 0.05), chain(4)),
    "draft_model, static": lambda model: DraftModel(noisy_copy(model, 0.05), STATIC),
    "draft_model, best first": lambda model: DraftModel(noisy_copy(model, 0.05), BestFirst(10, 4, 3)),
    "ngram": lambda _: NGram(),
    "suffix": lambda _: Suffix(),
    "recycling": lambda _: Recycling(STATIC),
    "hybrid": lambda _: Hybrid([Suffix(), Recycling(STATIC)]),
}


FIVE = (9, 4, 1, 12, 3)


@pytest.mark.parametrize(
    ("lengths", "acceptance"),
    [((6,), "coupled"), (FIVE, "coupled"), (FIVE, "rejection")],
    ids=["alone", "five", "five, rejection"],
)
@pytest.mark.parametrize("inner", INNER)
def test_text_is_the_models_own(inner: str, lengths: tuple[int, ...], acceptance: str) -> None:
    """Where drafting is dear enough that trees grow, shrink and stop."""
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    ids, mask, _ = ragged_batch(lengths, vocab=VOCAB)
    drafter = Adaptive(INNER[inner](model), 0.15, 0.05, allowance=0.1)
    out = specdec.generate(
        model, ids, mask, drafter=drafter, acceptance=acceptance, max_new_tokens=40, eos_token_id=[], pad_token_id=0
    )
    assert out.sequences[:, ids.shape[1] :].tolist() == own_texts(lengths, 40, VOCAB)
    if inner.startswith("draft_model"):  # the others look into texts, and these are random
        assert out.stats.mean_accepted_length_pooled > 1.02
    requests = out.stats.requests
    assert 0 < sum(r.nodes for r in requests) < 0.9 * sum((drafter.needs.max_nodes - 1) * r.steps for r in requests)


@pytest.mark.parametrize("inner", ["draft_model, static", "draft_model, best first", "suffix"])
@pytest.mark.parametrize("lengths", [(6,), FIVE], ids=["alone", "five"])
def test_the_same_seed_gives_the_same_text(inner: str, lengths: tuple[int, ...]) -> None:
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    ids, mask, _ = ragged_batch(lengths, vocab=VOCAB)
    settings: dict[str, Any] = {"sampling": SamplingParams(temperature=0.8, top_p=0.95, seed=7), "eos_token_id": []}
    plain = specdec.generate(model, ids, mask, drafter="none", max_new_tokens=40, **settings)
    drafter = Adaptive(INNER[inner](model), 0.15, 0.05, allowance=0.1)
    for _ in range(2):  # the second time it remembers
        ours = specdec.generate(model, ids, mask, drafter=drafter, max_new_tokens=40, **settings)
        assert torch.equal(ours.sequences, plain.sequences)


def test_requests_that_come_and_go() -> None:
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    drafter = Adaptive(DraftModel(noisy_copy(model, 0.05), STATIC), 0.15, 0.05, allowance=0.1)
    engine = Engine(model, drafter, None, "coupled")
    requests = [Request(prompt, 8 + 7 * i, SamplingParams()) for i, prompt in enumerate(PROMPTS * 2)]
    stats, texts = DecodingStats(), [list[int]() for _ in requests]
    for generation, tokens in engine.run(requests, stats, slots=3):
        texts[generation.index] += tokens
    assert texts == [plain_text(model, list(r.prompt), r.max_new_tokens) for r in requests]


def test_a_yaml_within_a_yaml() -> None:
    made = registry.build("drafter", "adaptive", drafter={"_target_": "specdec.drafters.ngram.NGram", "max_nodes": 5})
    assert isinstance(made.drafter, NGram)
    assert made.needs.max_nodes == 5
    assert isinstance(registry.build("drafter", "adaptive", drafter="recycling").drafter, Recycling)
    with pytest.raises(ValueError, match=r"unknown drafter 'ngrm'\. Did you mean 'ngram'"):
        registry.check_spec("drafter", {"_target_": "specdec.drafters.adaptive.Adaptive", "drafter": "ngrm"})
    raw = {"methods": {"a": {"drafter": {**registry.read_yaml("drafter", "adaptive"), "drafter": "synthetic"}}}}
    assert [m.name for m in make_methods({"acceptance": "coupled", **raw}, ())] == ["none", "a_synthetic"]


def test_refuses() -> None:
    small: Any = NGram()
    small.vocab_size = 7
    with pytest.raises(ValueError, match="a vocabulary of 7 tokens"):
        specdec.generate(make_model(), torch.tensor([[1, 2]]), drafter=Adaptive(small), max_new_tokens=2)
    with pytest.raises(ValueError, match="Adaptive cannot be a part of hybrid"):
        Hybrid([Adaptive(NGram())])
    wrong: list[dict[str, Any]] = [{"draft_cost": -1.0}, {"allowance": -0.1}, {"decay": 1.0}]
    for settings in wrong:
        with pytest.raises(ValueError, match="adaptive needs draft_cost >= 0, allowance >= 0 and decay between"):
            Adaptive(NGram(), **settings)
    with pytest.raises(ValueError, match="a row's cost is -1"):
        Adaptive(NGram(), -1.0)
    with pytest.raises(ValueError, match="cannot go around Lookahead: its 59 riders run at every step"):
        Adaptive(Lookahead())


def test_the_yaml_measured_costs_are_read(tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    file.write_text('{"nodes": [1, 8], "cost": [1.0, 1.7], "draft_cost": 0.3, "levels": 4}')
    drafter: Drafter = Adaptive(DraftModel(make_model(vocab_size=VOCAB)), file)
    assert isinstance(drafter, Adaptive)
    assert drafter.cost == StepCost(CostCurve((1, 8), (1.0, 1.7)), 0.3)
    assert Adaptive(NGram(), str(file), 0.1).cost.level == 0.1
    for whole in (NGram(), Recycling(STATIC), Hybrid([Suffix()])):  # they draft all levels at once
        assert Adaptive(whole, str(file)).cost.level == 1.2
    file.write_text('{"nodes": [1, 8], "cost": [1.0, 1.7], "sequences": [1, 4], "sequences_cost": [1.0, 2.0]}')
    assert Adaptive(NGram(), file).cost.sequences == CostCurve((1, 4), (1.0, 2.0))
