"""The loop: the same text whatever is drafted, however requests share slots; and what it counts.

Texts are compared in float64, where rounding decides no token.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

import specdec
from specdec import registry
from specdec.acceptance.block import Block
from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.traversal import Traversal
from specdec.core import AcceptanceRule, Drafter, DraftNeeds, TargetOutput, Verdict
from specdec.decode import decode
from specdec.drafters.ngram import NGram
from specdec.drafters.none import NoDrafter
from specdec.engine import Engine
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import DraftNoise, SamplingParams
from specdec.step import Step
from specdec.target import Target
from specdec.tree.token_tree import TokenTree

from .fakes import Scripted
from .models import VOCAB, make_model, plain_text

PROMPTS = [[5, 6, 7, 5, 6], [11], [2, 3, 2, 3, 2, 3, 2], [9, 8], [4] * 12, [60, 1, 33], [7, 7]]
PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=1.2, top_k=20, seed=2),
    SamplingParams(repetition_penalty=1.5),
    SamplingParams(temperature=1.0, top_p=0.8, repetition_penalty=1.2, seed=4),
    SamplingParams(temperature=0.9, min_p=0.05, seed=5),
    SamplingParams(temperature=0.8, seed=1),
]
LENGTHS = [20, 13, 1, 25, 8, 17, 2]
REQUESTS = [Request(p, n, s) for p, n, s in zip(PROMPTS, LENGTHS, PARAMS, strict=True)]
MAX_LENGTH = 40


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def target(model: PreTrainedModel) -> Target:
    return Target(model)


def run(
    target: Target,
    drafter: Drafter,
    requests: Sequence[Request],
    slots: int = 0,
    rule: AcceptanceRule | None = None,
    stats: DecodingStats | None = None,
) -> list[list[int]]:
    """The requests' new tokens, in their order; checks that what is yielded adds up to them."""
    texts: dict[int, list[int]] = {}
    yielded: dict[int, list[int]] = {}
    served = decode(Step(target, drafter, rule or Coupled(), slots or len(requests), MAX_LENGTH), requests, stats)
    for generation, tokens in served:
        yielded.setdefault(generation.index, []).extend(tokens)
        if generation.finished:
            texts[generation.index] = generation.new_ids
    assert texts == yielded
    return [texts[i] for i in range(len(requests))]


@pytest.fixture(scope="module")
def plain(target: Target) -> list[list[int]]:
    """Every request served alone, token by token."""
    return [run(target, NoDrafter(), [r])[0] for r in REQUESTS]


@pytest.fixture(scope="module")
def long(target: Target) -> dict[tuple[int, ...], list[int]]:
    """Continuations past every request's end, for drafters that know them."""
    texts = {}
    for request in REQUESTS:
        longer = replace(request, max_new_tokens=MAX_LENGTH - len(request.prompt))
        texts[tuple(request.prompt)] = run(target, NoDrafter(), [longer])[0]
    return texts


def test_plain_decoding_is_the_models_own(model: PreTrainedModel, target: Target) -> None:
    for penalty in (1.0, 1.5):
        wanted = [plain_text(model, p, 20, repetition_penalty=penalty) for p in PROMPTS]
        requests = [Request(p, 20, SamplingParams(repetition_penalty=penalty)) for p in PROMPTS]
        assert run(target, NoDrafter(), requests) == wanted
        texts = {tuple(p): t for p, t in zip(PROMPTS, wanted, strict=True)}
        for drafter in (NGram(), Scripted(texts, hit=0.7), Scripted(texts, hit=1.0, chains=True)):
            assert run(target, drafter, requests) == wanted


def test_texts_vary_and_end_where_they_should(plain: list[list[int]]) -> None:
    assert [len(t) for t in plain] == LENGTHS
    assert len(set(itertools.chain(*plain))) > 20


@given(
    hit=st.floats(0, 1),
    max_nodes=st.integers(1, 12),
    chains=st.booleans(),
    slots=st.integers(1, 7),
    chosen=st.permutations(range(7)).flatmap(lambda order: st.integers(1, 7).map(lambda n: order[:n])),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25)
def test_coupled_equality(
    target: Target,
    plain: list[list[int]],
    long: dict[tuple[int, ...], list[int]],
    hit: float,
    max_nodes: int,
    chains: bool,
    slots: int,
    chosen: list[int],
    seed: int,
) -> None:
    """Random trees of any shape, any batch, any number of slots: the text of plain decoding, token for token."""
    drafter = Scripted(long, hit, max_nodes, chains, VOCAB, seed)
    assert run(target, drafter, [REQUESTS[i] for i in chosen], slots) == [plain[i] for i in chosen]


def test_more_than_a_word_of_nodes(
    target: Target, plain: list[list[int]], long: dict[tuple[int, ...], list[int]]
) -> None:
    assert run(target, Scripted(long, hit=0.8, max_nodes=100), REQUESTS) == plain


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 9])
def test_a_queue_longer_than_the_slots(target: Target, plain: list[list[int]], slots: int) -> None:
    """7 requests enter as others leave, and every text is that of its request alone."""
    stats = DecodingStats()
    assert run(target, NGram(), REQUESTS, slots, stats=stats) == plain
    assert [r.new_tokens for r in stats.requests] == LENGTHS
    assert [r.prompt_tokens for r in stats.requests] == [len(p) for p in PROMPTS]


@pytest.mark.parametrize("name", ["suffix", "recycling", "hybrid"])
def test_what_was_learnt_from_other_requests_changes_no_text(target: Target, plain: list[list[int]], name: str) -> None:
    """Prompts, settings and lengths of all kinds in two slots, twice by one drafter: it remembers the first time."""
    drafter = registry.build("drafter", name)
    steps = []
    for _ in range(2):
        stats = DecodingStats()
        assert run(target, drafter, REQUESTS, slots=2, stats=stats) == plain
        steps.append(stats.steps)
    assert steps[1] < steps[0]


def test_the_clock_runs_while_room_is_made(model: PreTrainedModel) -> None:
    """Buffers are part of what a text costs."""

    class Slow(NoDrafter):
        def open(self, capacity: int, max_length: int, device: torch.device) -> Any:
            time.sleep(0.3)
            return super().open(capacity, max_length, device)

    stats = DecodingStats()
    for _ in Engine(model, Slow(), None, "coupled").run(REQUESTS[:2], stats):
        pass
    assert stats.phases["prefill"] >= 0.3


def test_at_most_as_many_at_once_as_slots(target: Target) -> None:
    seen: list[int] = []

    class Watching(NoDrafter):
        def propose(self, state: None, roots: Tensor, noise: DraftNoise) -> TokenTree:
            seen.append(int((roots >= 0).sum()))
            return super().propose(state, roots, noise)

    run(target, Watching(), REQUESTS, slots=2)
    assert max(seen) == 2
    assert min(seen) >= 1


def test_requests_are_taken_when_there_is_room(target: Target) -> None:
    """The queue is read lazily: an endless one is served too."""
    taken: list[int] = []

    def endless() -> itertools.count[int]:
        return itertools.count()

    queue = (taken.append(i) or REQUESTS[i % 7] for i in endless())  # type: ignore[func-returns-value]
    served = decode(Step(target, NoDrafter(), Coupled(), 2, MAX_LENGTH), queue)
    for _ in range(5):
        next(served)
    assert len(taken) <= 4


def test_the_same_seed_gives_the_same_text_beside_anyone(target: Target) -> None:
    twice = [REQUESTS[1], REQUESTS[4], REQUESTS[1]]
    one, _, other = run(target, NGram(), twice)
    assert one == other


@pytest.mark.parametrize("hit", [0.0, 0.6, 1.0], ids=["never", "sometimes", "always"])
@pytest.mark.parametrize("rule", [Coupled(), Rejection(), Block(), Traversal()], ids=lambda r: type(r).__name__.lower())
def test_fakes_that_match(
    target: Target, long: dict[tuple[int, ...], list[int]], hit: float, rule: AcceptanceRule
) -> None:
    """Fixed drafts: lossless rules follow the target's own token, so never, sometimes or always is what is accepted."""
    requests = [replace(REQUESTS[i], max_new_tokens=21) for i in (0, 1, 3)]
    stats = DecodingStats()
    texts = run(target, Scripted(long, hit, max_nodes=5, chains=True), requests, rule=rule, stats=stats)
    assert texts == [long[tuple(r.prompt)][:21] for r in requests]
    lengths = {0.0: [1] * 20, 1.0: [5] * 4}
    for request in stats.requests:
        assert sum(request.accept_lengths) == 20
        assert request.accept_lengths == lengths.get(hit, request.accept_lengths)
    assert stats.draft_acceptance_rate == pytest.approx({0.0: 0.0, 1.0: 1.0}.get(hit, stats.draft_acceptance_rate))


# --- ends


def test_eos_ends_a_text_in_the_middle_of_a_step(
    target: Target, plain: list[list[int]], long: dict[tuple[int, ...], list[int]]
) -> None:
    """The token that ended it is its last; what was accepted behind it is dropped, and its neighbours go on."""
    for place in (0, 1, 5, 9):
        stop = plain[0][place]
        first = plain[0].index(stop)
        requests = [replace(REQUESTS[0], eos=frozenset({stop, VOCAB})), REQUESTS[1], REQUESTS[3]]
        stats = DecodingStats()
        texts = run(target, Scripted(long, 1.0, 7, chains=True), requests, stats=stats)
        assert texts == [plain[0][: first + 1], plain[1], plain[3]]
        assert stats.requests[0].new_tokens == first + 1


def test_criteria_are_asked_after_every_token(target: Target, plain: list[list[int]]) -> None:
    class Until(StoppingCriteria):
        def __init__(self) -> None:
            self.seen: list[list[int]] = []

        def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:
            self.seen.append(input_ids[0].tolist())
            return torch.tensor([len(input_ids[0]) >= len(PROMPTS[0]) + 6])

    until = Until()
    request = replace(REQUESTS[0], criteria=StoppingCriteriaList([until]))
    assert run(target, NGram(), [request]) == [plain[0][:6]]
    assert until.seen == [PROMPTS[0] + plain[0][:n] for n in range(1, 7)]


def test_never_more_than_max_new_tokens(target: Target, long: dict[tuple[int, ...], list[int]]) -> None:
    for length in range(1, 9):
        stats = DecodingStats()
        requests = [replace(r, max_new_tokens=length) for r in REQUESTS[:2]]
        texts = run(target, Scripted(long, 1.0, 7, chains=True), requests, stats=stats)
        assert texts == [long[tuple(r.prompt)][:length] for r in requests]
        assert stats.new_tokens == 2 * length


# --- processors


class Shift(LogitsProcessor):
    """Bans the successor of the last token, and the token at the text's length: wrong histories give other texts."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        banned = torch.stack([(input_ids[:, -1] + 1) % VOCAB, input_ids[:, 0] * 0 + input_ids.shape[1] % VOCAB], 1)
        return scores.scatter(1, banned, -torch.inf)


def test_processors_see_the_path(
    model: PreTrainedModel, target: Target, plain: list[list[int]], long: dict[tuple[int, ...], list[int]]
) -> None:
    own = LogitsProcessorList([Shift()])
    wanted = [plain_text(model, p, 15, logits_processor=own) for p in PROMPTS[:3]]
    texts = {**long, **{tuple(p): t for p, t in zip(PROMPTS, wanted, strict=False)}}
    requests = [Request(p, 15, processors=own) for p in PROMPTS[:3]]
    for drafter in (NoDrafter(), NGram(), Scripted(texts, hit=0.7, max_nodes=9)):
        assert run(target, drafter, [*requests, REQUESTS[5]]) == [*wanted, plain[5]]


# --- metrics


class Trees:
    """Proposes given trees, one per step, for one slot."""

    def __init__(self, trees: list[list[list[int]]]):
        self.trees = trees
        self.needs = DraftNeeds(max_nodes=8)

    def open(self, capacity: int, max_length: int, device: torch.device) -> list[list[list[int]]]:
        return list(self.trees)

    def start(
        self, state: list[list[list[int]]], slots: list[int], prompts: list[list[int]], prefill: TargetOutput
    ) -> None: ...

    def propose(self, state: list[list[list[int]]], roots: Tensor, noise: DraftNoise) -> TokenTree:
        return TokenTree.from_paths(roots.tolist(), [state.pop(0)])

    def observe(
        self, state: list[list[list[int]]], tree: TokenTree, verdict: Verdict, output: TargetOutput
    ) -> None: ...


def test_metrics_by_hand(target: Target, plain: list[list[int]]) -> None:
    t = plain[0]
    wrong = [(token + 1) % VOCAB for token in t]
    trees = [
        [],  # nothing drafted: emits t1
        [[wrong[2], 5], [t[2]]],  # 3 nodes, height 2, accepts t2 (the second child, a leaf), emits t2 t3
        [[wrong[4]]],  # 1 node, height 1, accepts nothing, emits t4
        [[t[5], t[6], wrong[7]], [t[5], wrong[6]]],  # 4 nodes, height 3, accepts t5 t6, emits t5 t6 t7
        [[t[8], t[9], t[10], t[11]]],  # 4 nodes, height 4, accepts all, emits t8 ... t12, of which 3 are wanted
    ]
    stats = DecodingStats()
    assert run(target, Trees(trees), [replace(REQUESTS[0], max_new_tokens=11)], stats=stats) == [t[:11]]
    request = stats.requests[0]
    assert request.accept_lengths == [1, 2, 1, 3, 3]
    assert request.steps == stats.steps == stats.forwards == 5
    assert request.new_tokens == stats.new_tokens == 11
    assert request.nodes == 0 + 3 + 1 + 4 + 4
    assert request.proposed_depth == 0 + 2 + 1 + 3 + 4
    assert request.accepted == 0 + 1 + 0 + 2 + 4
    assert request.offered_by_depth == [4, 2, 2, 1]
    assert request.accepted_by_depth == [3, 2, 1, 1]
    assert request.children == [[0], [2, 0], [1], [1, 2, 1], [1, 1, 1, 1, 0]]
    assert request.ranks == [[], [1], [], [0, 0], [0, 0, 0, 0]]
    assert stats.accept_lengths == [[1, 2, 1, 3, 3]]
    assert stats.mean_accepted_length_pooled == pytest.approx(10 / 5)
    assert stats.block_efficiency == pytest.approx(11 / 6)
    assert stats.draft_acceptance_rate == pytest.approx(7 / 10)
    assert stats.node_acceptance_rate == pytest.approx(7 / 12)
    assert stats.acceptance_by_depth == {
        "conditional": pytest.approx([3 / 4, 2 / 2, 1 / 2, 1]),
        "unconditional": pytest.approx([3 / 5, 2 / 5, 1 / 5, 1 / 5]),
    }
    assert 0 < request.start < request.first < request.end
    assert all(seconds >= 0 for seconds in stats.phases.values())


def test_metrics_of_a_batch_are_those_of_its_requests(target: Target, long: dict[tuple[int, ...], list[int]]) -> None:
    together, alone = DecodingStats(), []
    run(target, Scripted(long, 1.0, 4, chains=True), REQUESTS, slots=3, stats=together)
    for request in REQUESTS:
        alone.append(DecodingStats())
        run(target, Scripted(long, 1.0, 4, chains=True), [request], stats=alone[-1])
    merged = DecodingStats.merge(alone)
    for name in ("accept_lengths", "steps", "new_tokens", "acceptance_by_depth", "mean_accepted_length_per_request"):
        assert getattr(together, name) == getattr(merged, name)
    assert together.forwards < merged.forwards


class _Proposes:
    """A drafter whose tree is whatever the test says."""

    def __init__(self, tree: TokenTree, max_nodes: int):
        self._tree = tree
        self.needs = DraftNeeds(max_nodes=max_nodes)

    def open(self, capacity: int, max_length: int, device: torch.device) -> None: ...

    def start(self, state: None, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None: ...

    def propose(self, state: None, roots: Tensor, noise: DraftNoise) -> TokenTree:
        return self._tree

    def observe(self, state: None, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None: ...


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (TokenTree.from_lists([([], [])]), "size 0|empty"),
        (TokenTree.chain(torch.tensor([[1, 2, 3, 4]])), "max_nodes"),
    ],
)
def test_trees_that_break_the_contract(tree: TokenTree, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        specdec.generate(make_model("llama"), torch.tensor([[1, 2]]), drafter=_Proposes(tree, 2), max_new_tokens=4)


class Proposing(NoDrafter):
    """Proposes what it was given."""

    needs = DraftNeeds(max_nodes=2)

    def __init__(self, proposal: object):
        self.proposal = proposal

    def propose(self, state: None, roots: Tensor, noise: DraftNoise) -> TokenTree:
        return self.proposal(roots) if callable(self.proposal) else self.proposal  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (None, "the drafter proposed None; expected a TokenTree for 1 slots"),
        (TokenTree.from_paths([5, 5], [[], []]), "proposed trees for 2 slots; expected a TokenTree for 1 slots"),
        (
            lambda roots: TokenTree.from_paths(roots.tolist(), [[[1, 2]]]),
            "3 nodes; its needs.max_nodes says 2",
        ),
        (
            lambda roots: TokenTree.from_paths(roots.tolist(), [[[99999]]]),
            "token 99999; the target's go from 0",
        ),
        (lambda roots: TokenTree.from_paths([(int(roots) + 1) % VOCAB], [[]]), "whose root is not `roots`"),
        (lambda roots: TokenTree.from_paths([-1], [[]]), "a tree of size 0 for a running text"),
    ],
)
def test_a_drafter_that_is_wrong_is_told(target: Target, proposal: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(target, Proposing(proposal), [REQUESTS[0]])
