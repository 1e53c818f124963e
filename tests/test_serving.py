"""In flight: a request's text is that of the request alone, whatever is beside it, and however pages are dealt out.

Texts are compared in float64, and in float32 with exact=True.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from specdec import registry
from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.arrivals import Arrival, Served
from specdec.cache import Paging
from specdec.capture import CapturedStep, Graphs
from specdec.core import AcceptanceRule, Drafter
from specdec.decode import Flight, decode
from specdec.drafters.adaptive import Adaptive
from specdec.drafters.adaptive import State as AdaptiveState
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.ngram import NGram
from specdec.drafters.none import NoDrafter
from specdec.metrics import DecodingStats
from specdec.request import Generation, Request
from specdec.sampling import DraftNoise, SamplingParams
from specdec.serving import IDLE, Serving, serve
from specdec.serving_settings import ServingSettings
from specdec.step import Step
from specdec.target import Target, attach
from specdec.tree.static import StaticTree
from specdec.tree.token_tree import TokenTree
from specdec.turn import Turn

from .drafters.test_contract import build_drafter
from .models import make_model, noisy_copy
from .test_step import DeviceNGram, Replayed

VOCAB = 40  # that of the contract's drafters
LONG = [i * 7 % VOCAB for i in range(1, 24)]
PROMPTS = [[5, 6, 7, 5, 6], [11], LONG, [9, 8], LONG[:17], [4] * 12, [*LONG[:17], 3, 1], [7]]
PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=1.2, top_k=20, seed=2),
    SamplingParams(repetition_penalty=1.5),
    SamplingParams(),
    SamplingParams(temperature=1.0, top_p=0.8, repetition_penalty=1.2, seed=4),
    SamplingParams(temperature=0.9, min_p=0.05, seed=5),
    SamplingParams(temperature=0.8, seed=1),
]
LENGTHS = [20, 13, 1, 25, 8, 17, 12, 22]
REQUESTS = [Request(p, n, s) for p, n, s in zip(PROMPTS, LENGTHS, PARAMS, strict=True)]
MAX_LENGTH = 40


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(vocab_size=VOCAB, dtype=torch.float64)


@pytest.fixture(scope="module")
def target(model: PreTrainedModel) -> Target:
    return Target(model)


def alone(target: Target, request: Request, rule: AcceptanceRule | None = None) -> list[int]:
    """The text of one request, in a dense cache, token by token."""
    step = Step(target, NoDrafter(), rule or Coupled(), 1, MAX_LENGTH)
    return [token for _, tokens in decode(step, [request]) for token in tokens]


@pytest.fixture(scope="module")
def plain(target: Target) -> list[list[int]]:
    return [alone(target, r) for r in REQUESTS]


@dataclass
class Setting:
    slots: int = 3
    page: int = 4
    pages: int = 60
    rows: int = 24
    sharing: bool = True
    beside: bool = True  # a slot's pages
    max_length: int = MAX_LENGTH
    kind: type[Step] = Step


def begin(
    target: Target,
    drafter: Drafter,
    requests: Iterator[Arrival],
    given: Setting,
    rule: AcceptanceRule | None = None,
    stats: DecodingStats | None = None,
) -> Serving:
    parts = target, attach(drafter, target), rule or Coupled(), given.slots, given.max_length
    run = given.kind(*parts, paging=Paging(given.pages, given.page))
    settings = ServingSettings(given.slots, rows=given.rows, sharing=given.sharing, keep=stats is not None)
    serving = Serving(run, requests, settings, stats or DecodingStats())
    if not given.beside:
        serving.scheduler.width = 0
    return serving


def checked(serving: Serving) -> Generator[Generation, None, None]:
    """`serve`, with a look at the books at every turn. Pages in which nothing is known are full of NaN, so that whoever
    reads one is found out."""
    turn = serving.turn

    @torch.inference_mode()
    def watched() -> None:
        for arena in serving.run.target.cache.arenas:
            arena[:, list(serving.scheduler.pool._free)] = float("nan")
        turn()
        serving.scheduler.check()
        for job in serving.scheduler.running:
            assert serving.run.target.cache.tables[job.slot][: len(job.pages)] == job.pages
            written = int(serving.run.target.lengths[job.slot])
            assert written == job.length or (serving.flights and written > job.length)

    serving.turn = watched  # type: ignore[method-assign]
    yield from serve(serving)
    assert serving.scheduler.pool.held == 0
    assert serving.scheduler.pool.available == serving.scheduler.pool.pages
    assert serving.run.target.lengths.tolist() == [0] * len(serving.slots)


def texts(serving: Serving) -> dict[int, list[int]]:
    """The requests' new tokens; none of them may fail."""
    found = {}
    for generation in checked(serving):
        assert generation.error is None, generation.error
        found[generation.index] = generation.new_ids
    return found


def arrivals(requests: Sequence[Request]) -> Iterator[Arrival]:
    return ((request, None) for request in requests)


@given(
    order=st.permutations(range(len(REQUESTS))),
    slots=st.integers(1, 6),
    page=st.integers(1, 20),
    spare=st.integers(0, 30),
    rows=st.integers(1, 40),
    sharing=st.booleans(),
    beside=st.booleans(),
    drafter=st.sampled_from([NoDrafter(), NGram()]),
)
@settings(max_examples=12)
def test_a_text_depends_on_its_request_alone(
    target: Target,
    plain: list[list[int]],
    order: list[int],
    slots: int,
    page: int,
    spare: int,
    rows: int,
    sharing: bool,
    beside: bool,
    drafter: Drafter,
) -> None:
    """Whatever the order, the slots, the pages (down to so few that the longest fits by itself alone), and chunks."""
    least = -(-(MAX_LENGTH + drafter.needs.room) // page)
    given = Setting(slots, page, least + spare, rows, sharing, beside)
    found = texts(begin(target, drafter, arrivals([REQUESTS[i] for i in order]), given))
    assert [found[place] for place in range(len(order))] == [plain[i] for i in order]


@pytest.mark.parametrize("name", registry.names("drafter"))
def test_every_drafter(model: PreTrainedModel, plain: list[list[int]], name: str) -> None:
    """With so few pages that requests are preempted, and prompts in small chunks."""
    drafter = build_drafter(name, model)
    target = Target(model, hidden_layers=drafter.needs.hidden_layers)
    room, stats = attach(drafter, target).needs.room, DecodingStats()
    given = Setting(slots=4, page=3, pages=-(-(MAX_LENGTH + room) // 3) + room // 3, rows=12)
    found = texts(begin(target, drafter, arrivals(REQUESTS), given, stats=stats))
    assert [found[i] for i in range(len(REQUESTS))] == plain
    assert [r.new_tokens for r in stats.requests] == LENGTHS
    assert sum(r.preemptions for r in stats.requests) > 0


def test_all_but_the_first_are_preempted(target: Target, plain: list[list[int]]) -> None:
    """Those that come beside a long one, in a pool that can hold hardly more than that one."""
    stats = DecodingStats()
    given = Setting(slots=3, page=2, pages=(MAX_LENGTH + NGram().needs.room) // 2, rows=8, sharing=False)
    waiting = [Request([1], 38 - NGram().needs.room), *(REQUESTS[i] for i in (0, 3, 5))]
    found = texts(begin(target, NGram(), arrivals(waiting), given, stats=stats))
    assert [found[i] for i in (1, 2, 3)] == [plain[i] for i in (0, 3, 5)]
    assert [r.preemptions > 0 for r in stats.requests] == [False, True, True, True]


def test_hidden_states_of_a_small_chunk_do_not_keep_those_of_the_whole_pass(
    model: PreTrainedModel, plain: list[list[int]]
) -> None:
    """Prompts that are read piece by piece, beside others: what is kept of a piece meanwhile."""
    drafter = build_drafter("eagle", model)
    target = Target(model, hidden_layers=drafter.needs.hidden_layers)
    kept: list[tuple[int, int]] = []

    def look(turn: Turn) -> None:
        pieces = [rows for job in serving.scheduler.running for layer in job.hidden.values() for rows in layer]
        kept.extend((rows.nbytes, rows.untyped_storage().nbytes()) for rows in pieces)

    serving = begin(target, drafter, arrivals([REQUESTS[i] for i in (2, 4, 6)]), Setting(slots=3, rows=20))
    serving.settings = replace(serving.settings, watch=look)
    found = texts(serving)
    assert [found[i] for i in range(3)] == [plain[i] for i in (2, 4, 6)]
    assert len({own for own, _ in kept}) > 1
    assert all(own <= held <= 2 * own for own, held in kept)


class Watched(Adaptive):
    """Keeps how many rows it was told are beside its trees, of how many slots, and the trees' sizes."""

    seen: list[tuple[int, list[int]]]

    def propose(self, state: AdaptiveState, roots: Tensor, noise: DraftNoise) -> TokenTree:
        beside = state.beside
        tree = super().propose(state, roots, noise)
        self.seen.append((beside, tree.sizes.tolist()))
        return tree


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_trees_that_follow_the_load(
    model: PreTrainedModel, target: Target, plain: list[list[int]], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts read in chunks and as many requests as there are slots, on a curve on which a row costs a tenth of a
    step: the rows that the drafter is told of are those of the pass, sizes change, and no text does."""
    passes: list[int] = []
    forward = Target._forward

    def counted(self: Target, tokens: Tensor, *rest: Any, **more: Any) -> Any:
        passes.append(len(tokens))
        return forward(self, tokens, *rest, **more)

    drafter = Watched(DraftModel(noisy_copy(model, 0.05), StaticTree([[0], [1], [0, 0], [0, 1], [0, 0, 0]])), 0.1, 0.02)
    drafter.seen = []
    serving = begin(target, drafter, arrivals(REQUESTS * 2), Setting(slots=slots, rows=20, sharing=False))
    verify = Target.verify

    def verified(self: Target, *given: Any) -> Any:
        """Of the target, not of the draft model."""
        if self is not target or not int(given[0].sizes.sum()):
            return verify(self, *given)
        monkeypatch.setattr(Target, "_forward", counted)
        try:
            return verify(self, *given)
        finally:
            monkeypatch.setattr(Target, "_forward", forward)

    monkeypatch.setattr(Target, "verify", verified)
    found = texts(serving)
    assert [found[i] for i in range(len(found))] == plain * 2
    assert passes == [beside + sum(sizes) for beside, sizes in drafter.seen]
    assert len({size for _, sizes in drafter.seen for size in sizes}) > 3
    assert any(beside for beside, _ in drafter.seen) == (slots > 1)  # alone, prompts are read beside nothing


@pytest.mark.parametrize("drafter", [NoDrafter(), NGram()], ids=["none", "ngram"])
def test_exact_mode_keeps_its_bits_in_flight(drafter: Drafter) -> None:
    """In float32: chunks, pages, preemption and sharing change no bit of a row."""
    target = Target(make_model(vocab_size=VOCAB), exact=True)
    wanted = [alone(target, r) for r in REQUESTS]
    for setting in (Setting(slots=5), Setting(slots=3, page=5, pages=12, rows=9)):
        found = texts(begin(target, drafter, arrivals(REQUESTS), setting))
        assert [found[i] for i in range(len(REQUESTS))] == wanted


class Captured(CapturedStep):
    """Its graphs are functions that write into the tensors they returned first."""

    def __init__(
        self, target: Target, drafter: Drafter, rule: AcceptanceRule, capacity: int, max_length: int, paging: Paging
    ):
        super().__init__(target, drafter, rule, capacity, max_length, Graphs(Replayed), paging)


@pytest.mark.parametrize("name", ["ngram", "draft_model", "eagle", "early_exit", "lookahead"])
def test_as_on_a_gpu(
    model: PreTrainedModel, plain: list[list[int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps in graphs but for those that read prompts, and the host a step behind."""
    for place in ("decode", "serving_settings"):
        monkeypatch.setattr(f"specdec.{place}.steps_late", lambda device: 1)
    monkeypatch.setattr(Flight, "begin", staticmethod(lambda record, who: Flight(record.clone(), None, list(who))))
    drafter = DeviceNGram() if name == "ngram" else build_drafter(name, model)
    target = Target(model, hidden_layers=drafter.needs.hidden_layers)
    needs = attach(drafter, target).needs
    pages = -(-(MAX_LENGTH + needs.room + needs.max_nodes) // 3) + needs.room // 3
    given = Setting(slots=4, page=3, pages=pages, rows=12, max_length=MAX_LENGTH + 8, kind=Captured)
    stats = DecodingStats()
    found = texts(begin(target, drafter, arrivals(REQUESTS), given, stats=stats))
    assert [found[i] for i in range(len(REQUESTS))] == plain
    assert sum(r.preemptions for r in stats.requests) > 0


def test_rejection_in_flight(target: Target) -> None:
    """Its text depends on what is drafted; without drafts it is plain sampling's."""
    wanted = [alone(target, r, Rejection()) for r in REQUESTS]
    found = texts(begin(target, NoDrafter(), arrivals(REQUESTS), Setting(pages=14), Rejection()))
    assert [found[i] for i in range(len(REQUESTS))] == wanted


def test_shared_beginnings_are_read_once(target: Target, plain: list[list[int]]) -> None:
    """Three prompts begin with the same 17 tokens; what the first has read, and half a page more, is there."""
    stats = DecodingStats()
    given = Setting(slots=1, page=5)
    found = texts(begin(target, NoDrafter(), arrivals([REQUESTS[i] for i in (2, 4, 6)]), given, stats=stats))
    assert [found[i] for i in range(3)] == [plain[i] for i in (2, 4, 6)]
    assert [r.shared_tokens for r in stats.requests] == [0, 15, 17]
    assert not any(r.preemptions for r in stats.requests)
    unshared = DecodingStats()
    texts(begin(target, NoDrafter(), arrivals(REQUESTS), replace(given, sharing=False), stats=unshared))
    assert not any(r.shared_tokens for r in unshared.requests)


def test_what_is_found_again_after_preemption_is_not_shared(target: Target, plain: list[list[int]]) -> None:
    """No two of these begin alike."""
    stats = DecodingStats()
    given = Setting(slots=3, page=2, pages=(MAX_LENGTH + NGram().needs.room) // 2, rows=8)
    waiting = [Request([1], 38 - NGram().needs.room), *(REQUESTS[i] for i in (0, 3, 5))]
    serving = begin(target, NGram(), arrivals(waiting), given, stats=stats)
    again: list[int] = []
    admit = serving.scheduler.admit

    def admitted() -> Served | None:
        if (job := admit()) is not None and job.preemptions:
            again.append(job.length)
        return job

    serving.scheduler.admit = admitted  # type: ignore[method-assign]
    found = texts(serving)
    assert [found[i] for i in (1, 2, 3)] == [plain[i] for i in (0, 3, 5)]
    assert any(again), "somebody found some of his own"
    assert [r.shared_tokens for r in stats.requests] == [0] * 4


def test_a_text_may_be_shared_too(target: Target) -> None:
    """A second turn begins with the first one's text."""
    first = alone(target, REQUESTS[0])
    turn = Request([*PROMPTS[0], *first, 1, 2], 5)
    stats = DecodingStats()
    found = texts(begin(target, NGram(), arrivals([REQUESTS[0], turn]), Setting(slots=1, page=4), stats=stats))
    assert found[1] == alone(target, turn)
    assert stats.requests[1].shared_tokens == 24  # of 25, the last one is not committed


def test_the_queue_is_read_when_there_is_room(target: Target) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Arrival]:
        while True:
            taken.append(1)
            yield REQUESTS[len(taken) % 7], None

    served = serve(begin(target, NoDrafter(), endless(), Setting(slots=2)))
    for _ in range(5):
        next(served)
    assert len(taken) <= 8
    served.close()


def test_refused_ones_hold_nobody_up(target: Target, plain: list[list[int]]) -> None:
    """As many as there are slots are refused at a turn: the next one that can be served enters at once, and a queue of
    wrong ones without an end is handed out as it comes."""
    wrong = Request([1], MAX_LENGTH)
    serving = begin(target, NoDrafter(), arrivals([REQUESTS[0], wrong, wrong, REQUESTS[1]]), Setting(slots=3))
    serving.turn()
    assert [generation.index for generation in serving.ended] == [1, 2]
    assert [job.generation.index for job in serving.scheduler.running] == [0, 3]
    found = {g.index: g.new_ids for g in checked(serving)}
    assert found == {0: plain[0], 1: [], 2: [], 3: plain[1]}
    served = serve(begin(target, NoDrafter(), arrivals_of(wrong), Setting(slots=3)))
    assert [next(served).index for _ in range(7)] == list(range(7))
    served.close()


def arrivals_of(request: Request) -> Iterator[Arrival]:
    while True:
        yield request, None


def test_an_iterable_may_say_that_nothing_has_come_yet(
    target: Target, plain: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on meanwhile; who is alone with nothing waits a moment, and numbers are those of requests."""
    waits: list[float] = []
    monkeypatch.setattr("specdec.serving.time.sleep", waits.append)
    stats, asked = DecodingStats(), [0]

    def gaps() -> Iterator[Arrival]:
        yield from [None] * 3
        yield REQUESTS[0], None
        while stats.requests[0].steps < 5:  # of 20 tokens
            asked[0] += 1
            yield None
        yield REQUESTS[1], None
        while stats.requests[1].new_tokens < LENGTHS[1] or stats.requests[0].new_tokens < LENGTHS[0]:
            yield None
        yield from [None] * 2
        yield REQUESTS[2], None
        yield None

    found = texts(begin(target, NoDrafter(), gaps(), Setting(slots=2), stats=stats))
    assert found == dict(enumerate(plain[:3]))
    assert asked == [6]  # once a turn: when it is read, and at five steps
    assert waits == [IDLE] * 5  # before the first, and before the third


def test_a_watcher_sees_pages_and_slots(target: Target) -> None:
    turns: list[Turn] = []
    given = Setting(slots=2, page=4, pages=11, rows=8, sharing=False)
    serving = begin(target, NoDrafter(), arrivals([REQUESTS[i] for i in (4, 6, 1)]), given, stats=DecodingStats())
    serving.settings = replace(serving.settings, watch=turns.append)
    texts(serving)
    preempted = sum(r.preemptions for r in serving.stats.requests)
    assert preempted > 0
    assert all(0 < turn.held <= turn.pages == 11 for turn in turns)
    assert [turn.seconds for turn in turns] == sorted(turn.seconds for turn in turns)
    assert turns[0].running == ((0, 0, True), (1, 1, True))
    seen = {number for turn in turns for number, _, _ in turn.running}
    assert seen == {0, 1, 2}
    first = [turn.running for turn in turns if any(number == 0 for number, _, _ in turn.running)]
    flags = [reading for running in first for number, _, reading in running if number == 0]
    assert flags == sorted(flags, reverse=True)  # read first, and the first one is never preempted
    assert flags.count(False) == REQUESTS[4].max_new_tokens
    left = [
        number
        for before, after in pairwise(turns)
        for number in {n for n, _, _ in before.running} - {n for n, _, _ in after.running}
    ]
    assert len(left) == preempted + 2  # the last one ends after the last turn


def test_rows_of_a_pass_are_bounded(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = Target._forward

    def counted(self: Target, tokens: Tensor, *rest: Any, **more: Any) -> Any:
        rows.append(len(tokens))
        return forward(self, tokens, *rest, **more)

    monkeypatch.setattr(Target, "_forward", counted)
    texts(begin(target, NoDrafter(), arrivals(REQUESTS), Setting(slots=6, rows=20)))
    assert max(rows) <= 20


# One that goes wrong


class Broken(LogitsProcessor):
    """Raises when a text has so many tokens."""

    def __init__(self, at: int):
        self.at = at

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] >= self.at:
            raise RuntimeError("broken processor")
        return scores


class Criterion(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if input_ids.shape[1] >= 14:
            raise KeyError("broken criterion")
        return torch.tensor([False])


class Streamer(BaseStreamer):
    """Keeps what it gets; raises at the n-th piece or at the end."""

    def __init__(self, broken: int = 10**9, end: bool = False):
        self.pieces: list[list[int]] = []
        self.broken, self.broken_end, self.ended = broken, end, 0

    def put(self, value: Tensor) -> None:
        self.pieces.append(value.tolist())
        if len(self.pieces) > self.broken:
            raise OSError("broken streamer")

    def end(self) -> None:
        self.ended += 1
        if self.broken_end:
            raise OSError("broken end")


@pytest.mark.parametrize("drafter", [NoDrafter(), NGram()], ids=["none", "ngram"])
def test_what_goes_wrong_in_one_ends_that_one(target: Target, plain: list[list[int]], drafter: Drafter) -> None:
    streamers = [Streamer(), Streamer(2), Streamer(0), Streamer(end=True)]
    wrong: list[tuple[Request, str]] = [
        (Request([3, 4], 20, processors=LogitsProcessorList([Broken(8)])), "broken processor"),
        (Request([3, 4], 20, processors=LogitsProcessorList([Broken(0)])), "broken processor"),
        (Request([2] * 9, 20, criteria=StoppingCriteriaList([Criterion()])), "broken criterion"),
        (Request([1, 2], 20, streamer=streamers[1]), "broken streamer"),
        (Request([1, 2], 20, streamer=streamers[2]), "broken streamer"),
        (Request([1, 2], 3, streamer=streamers[3]), "broken end"),
        (Request([1, 2], MAX_LENGTH), "give generate_many a larger max_length"),
    ]
    right = [replace(REQUESTS[0], streamer=streamers[0]), *REQUESTS[1:]]
    mixed = [r for pair in zip([r for r, _ in wrong], right[:7], strict=True) for r in pair] + right[7:]
    found = {g.index: g for g in checked(begin(target, drafter, arrivals(mixed), Setting(slots=4, page=3)))}
    for place, (_, message) in enumerate(wrong):
        assert message in str(found[2 * place].error)
    for place, wanted in enumerate(plain):
        generation = found[2 * place + 1 if place < 7 else 14]
        assert generation.error is None
        assert generation.new_ids == wanted
    assert 4 <= len(found[0].new_ids) <= 6, "what came before the step of the error"
    assert found[0].new_ids == alone(target, Request([3, 4], 20))[: len(found[0].new_ids)]
    assert streamers[0].pieces[0] == PROMPTS[0]
    assert [t for piece in streamers[0].pieces[1:] for t in piece] == plain[0]
    assert [s.ended for s in streamers] == [1, 1, 1, 1]


def test_larger_than_the_pool(target: Target, plain: list[list[int]]) -> None:
    requests = [REQUESTS[1], REQUESTS[3], REQUESTS[0]]
    found = {g.index: g for g in checked(begin(target, NoDrafter(), arrivals(requests), Setting(page=4, pages=6)))}
    assert "more than all 6 pages of 4 tokens" in str(found[1].error)
    assert found[0].new_ids == plain[1]
    assert "more than all 6 pages" in str(found[2].error)


def test_cancelling(target: Target, plain: list[list[int]]) -> None:
    """One that runs, one that waits for a slot, one that has not been taken, and one that has ended."""
    serving = begin(target, NoDrafter(), arrivals(REQUESTS), Setting(slots=2, page=3, rows=4))
    served = checked(serving)
    first = next(served)
    serving.settings.cancelled.update({first.index, 3, 6, 99})
    found = {g.index: g for g in [first, *served]}
    for index in (3, 6):
        assert isinstance(found[index].error, CancelledError)
        assert f"request {index} was cancelled" in str(found[index].error)
        assert found[index].new_ids == plain[index][: len(found[index].new_ids)]
        assert len(found[index].new_ids) < len(plain[index])
    assert [found[i].new_ids for i in (0, 1, 2, 4, 5, 7)] == [plain[i] for i in (0, 1, 2, 4, 5, 7)]


def test_cancelling_one_that_is_being_read(target: Target, plain: list[list[int]]) -> None:
    serving = begin(target, NGram(), arrivals([REQUESTS[2], REQUESTS[0]]), Setting(slots=2, page=3, rows=1))
    serving.turn()
    assert [job.reading for job in serving.scheduler.running] == [True, True]
    serving.settings.cancelled.add(0)
    found = {g.index: g for g in checked(serving)}
    assert isinstance(found[0].error, CancelledError)
    assert found[1].new_ids == plain[0]


def test_whoever_stops_reading_frees_everything(target: Target) -> None:
    streamer = Streamer()
    serving = begin(target, NGram(), arrivals([REQUESTS[1], replace(REQUESTS[3], streamer=streamer)]), Setting())
    served = checked(serving)
    next(served)
    served.close()
    assert serving.scheduler.pool.held == 0
    assert serving.run.roots.tolist() == [-1] * 3
    assert streamer.ended == 1


def test_times_and_counts(target: Target) -> None:
    stats = DecodingStats()
    texts(begin(target, NGram(), arrivals(REQUESTS), Setting(slots=2, page=4, pages=30), stats=stats))
    for request, length in zip(stats.requests, LENGTHS, strict=True):
        assert sum(request.accept_lengths) == request.new_tokens == length
        assert 0 < request.start <= request.start + request.queued < request.first <= request.end
        assert request.ttft >= request.queued
    assert stats.block_efficiency == pytest.approx(stats.new_tokens / stats.steps)
    assert stats.forwards < stats.steps
    assert stats.phases["prefill"] > 0


# A soak


def soak(target: Target, drafter: Drafter, count: int, seed: int) -> tuple[DecodingStats, int]:
    """Random requests in a small pool, some cancelled, some broken: every text, as far as it goes, is its request's."""
    chance = random.Random(seed)
    beginnings = [[chance.randrange(VOCAB) for _ in range(20)] for _ in range(3)]
    requests: list[Request] = []
    for number in range(count):
        prompt = chance.choice(beginnings)[: chance.randrange(0, 20)]
        prompt = [*prompt, *(chance.randrange(VOCAB) for _ in range(chance.randrange(1, 8)))]
        params = SamplingParams(temperature=chance.choice([0.0, 0.0, 1.0]), seed=number)
        request = Request(prompt, chance.randrange(0, MAX_LENGTH - len(prompt) + 2), params)
        if chance.random() < 0.05:
            request = replace(request, processors=LogitsProcessorList([Broken(chance.randrange(30))]))
        if chance.random() < 0.05:
            request = replace(request, streamer=Streamer(chance.randrange(9)))
        requests.append(request)
    given = Setting(slots=8, page=4, pages=-(-(MAX_LENGTH + drafter.needs.room) // 4) + 6, rows=32)
    stats = DecodingStats()
    serving = begin(target, drafter, arrivals(requests), given, stats=stats)
    found: dict[int, Generation] = {}
    for generation in checked(serving):
        found[generation.index] = generation
        if chance.random() < 0.1:
            serving.settings.cancelled.add(generation.index + chance.randrange(-2, 12))
    assert sorted(found) == list(range(count))
    texts = {}
    for number, request in enumerate(requests):
        generation = found[number]
        if len(request.prompt) + request.max_new_tokens > MAX_LENGTH:
            assert generation.error is not None
            continue
        wanted = alone(target, replace(request, processors=None, streamer=None)) if request.max_new_tokens else []
        texts[number] = wanted
        if generation.error is None:
            assert generation.new_ids == wanted
        else:
            assert generation.new_ids == wanted[: len(generation.new_ids)]
    return stats, sum(g.error is not None for g in found.values())


def test_a_small_soak(target: Target) -> None:
    stats, errors = soak(target, NGram(max_nodes=6), 60, seed=1)
    assert sum(r.preemptions for r in stats.requests) > 0
    assert sum(r.shared_tokens for r in stats.requests) > 100
    assert errors > 3


@pytest.mark.slow
@pytest.mark.parametrize("drafter", [NoDrafter(), NGram(max_nodes=6)], ids=["none", "ngram"])
def test_a_soak(target: Target, drafter: Drafter) -> None:
    stats, errors = soak(target, drafter, 2000, seed=2)
    assert sum(r.preemptions for r in stats.requests) > 200
    assert errors > 100
