"""What is recorded is what happened: probabilities by hand and by the model's own forward, and the same text."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import decode
from specdec.core import DraftNeeds, Verdict
from specdec.drafters.adaptive import Adaptive
from specdec.drafters.hybrid import Hybrid
from specdec.engine import Engine, serve
from specdec.experiments.trace.make import trace_text
from specdec.experiments.trace.record import Trace, read_traces, write_traces
from specdec.experiments.trace.watch import Clock, WatchedStep
from specdec.partial import with_layers
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.target import Target
from specdec.tree.token_tree import TokenTree

from ...drafters.test_contract import build_drafter
from .made import PROMPT, models, real_trace

TARGET, DRAFT, TOKENIZER = models()
IDS: list[int] = TOKENIZER(PROMPT)["input_ids"]
GREEDY = SamplingParams()
WARM = SamplingParams(temperature=0.7, top_k=20, repetition_penalty=1.3, seed=3)


def make_request(sampling: SamplingParams = GREEDY, **settings: Any) -> Request:
    return Request(IDS, **{"max_new_tokens": 30, "sampling": sampling, **settings})


def make_trace(engine: Engine, request: Request) -> Trace:
    return trace_text(engine, request, TOKENIZER, "mine", 1)


# --- by hand

TREE = TokenTree.from_lists([([5, 1, 2, 3], [-1, 0, 0, 2])])  # the root 5, below it 1 and 2, below 2 a 3
ROWS = {0: {1: 0.2, 2: 0.6, 4: 0.2}, 1: {4: 1.0}, 2: {3: 0.5, 4: 0.5}, 3: {0: 0.25, 4: 0.75}}
VERDICT = Verdict(torch.tensor([[0, 2, 3, -1]]), torch.tensor([3], dtype=torch.int32), torch.tensor([4]))


def logits(vocabulary: int) -> Tensor:
    """`[1, 4, V]`: after every node the probabilities above."""
    found = torch.full((1, 4, vocabulary), -torch.inf)
    for node, row in ROWS.items():
        for token, probability in row.items():
            found[0, node, token] = torch.tensor(probability).log()
    return found


def noted(sampling: SamplingParams, tree: TokenTree = TREE) -> Any:
    step = WatchedStep(Engine(TARGET, "none", None, "coupled"), 20)
    step.sampler.start(0, sampling, [5])
    step.sampling([0])
    step.clock.lap("draft")
    step._note(tree, logits(step.target.vocab_size), VERDICT)
    return step.steps[0]


@pytest.mark.parametrize(
    ("temperature", "expected", "own"),
    [
        (0.0, [None, 0.2, 0.6, 0.5], 0.75),  # of what the likeliest is taken from
        (1.0, [None, 0.2, 0.6, 0.5], 0.75),
        (0.5, [None, 0.04 / 0.44, 0.36 / 0.44, 0.5], 0.9),  # squares, normalised
    ],
)
def test_probabilities_by_hand(temperature: float, expected: list[float | None], own: float) -> None:
    step = noted(SamplingParams(temperature=temperature))
    assert (step.tokens, step.parents, step.path, step.own) == ([5, 1, 2, 3], [-1, 0, 0, 2], [0, 2, 3], 4)
    assert step.target == pytest.approx(expected, abs=1e-6)
    assert step.own_target == pytest.approx(own, abs=1e-6)
    assert step.draft == [None] * 4
    assert (step.sources, step.rider_tokens) == ({}, [])
    step.kept = 2
    assert (step.drafted, step.emitted) == ([2, 3], [2, 3])
    step.kept = 3
    assert (step.drafted, step.emitted) == ([2, 3], [2, 3, 4])


def test_filters_leave_no_probability() -> None:
    """Of .2, .6, .2 only the likeliest is in the top 1, and of two equal ones both."""
    step = noted(SamplingParams(temperature=1.0, top_k=1))
    assert step.target == pytest.approx([None, 0, 1, 0.5])


def test_draft_probabilities_are_those_children_were_drawn_from() -> None:
    drawn = torch.zeros(1, 4, TARGET.config.vocab_size)
    drawn[0, 0, 1], drawn[0, 0, 2], drawn[0, 2, 4] = 0.3, 0.7, 1.0  # 3 was not drawn: it is fixed
    assert noted(SamplingParams(), replace(TREE, draft_probs=drawn)).draft == pytest.approx([None, 0.3, 0.7, None])


# --- whole texts


@cache
@torch.no_grad()
def judged(model: Any, sampling: SamplingParams, text: tuple[int, ...]) -> Tensor:
    """`[V]`: by a plain forward of the text."""
    return processed(model(torch.tensor([list(text)])).logits[0, -1], sampling, text)


def processed(logits: Tensor, sampling: SamplingParams, text: tuple[int, ...]) -> Tensor:
    """Logits `[V]` after a text to probabilities: transformers' own warpers, and the penalty written out."""
    scores = logits.float()
    seen = torch.tensor(sorted(set(text)))
    penalty = sampling.repetition_penalty
    scores[seen] = torch.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    warpers = sampling.warpers()
    return (warpers(None, scores[None])[0] if warpers else scores).softmax(-1)


SETTINGS = {
    "greedy trees": ("best_first", "coupled", GREEDY),
    "sampled trees": ("best_first", "coupled", WARM),
    "drawn chains": ("chain", "rejection", WARM),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_recorded_is_what_the_models_say(name: str) -> None:
    tree, rule, sampling = SETTINGS[name]
    trace = make_trace(Engine(TARGET, DRAFT, tree, rule), make_request(sampling, max_new_tokens=16))
    text = (*IDS, trace.first)
    drafted = 0
    for step in trace.steps:
        assert step.tokens[0] == text[-1]
        paths: list[tuple[int, ...]] = []
        for node, (token, parent) in enumerate(zip(step.tokens, step.parents, strict=True)):
            paths.append(() if parent < 0 else (*paths[parent], token))
            if node:
                before = text + paths[parent]
                assert step.target[node] == pytest.approx(float(judged(TARGET, sampling, before)[token]), abs=1e-5)
                assert step.draft[node] == pytest.approx(float(judged(DRAFT, sampling, before)[token]), abs=1e-5)
        assert step.own_target == pytest.approx(
            float(judged(TARGET, sampling, text + paths[step.path[-1]])[step.own]), abs=1e-5
        )
        assert paths[step.path[-1]] == tuple(step.tokens[j] for j in step.path[1:])
        text += (*step.emitted,)
        drafted += len(step.drafted)
    assert drafted > 3
    assert text == (*IDS, *trace.ids)


@cache  # for all nodes of a tree
@torch.no_grad()
def hidden_before(text: tuple[int, ...], layers: tuple[int, ...]) -> dict[int, Tensor]:
    """The target's hidden states `[1, L - 1, H]` of a text without its last token."""
    target = Target(TARGET, hidden_layers=layers)
    target.open(1, len(text))
    return dict(target.prefill([0], [text[:-1]]).hidden)


@torch.no_grad()
def predicted(head: Any, text: tuple[int, ...], path: tuple[int, ...]) -> Tensor:
    """`[V]`: what a head is trained to say after `path` behind a text, whose last token is the root."""
    rest = head.depth + 2
    hidden = {n: pad(x, (0, 0, 0, rest)) for n, x in hidden_before(text, tuple(head.hidden_layers)).items()}
    tokens = torch.tensor([[*text, *path, *[0] * (rest - 1 - len(path))]])
    said: Tensor = head.predict(tokens, hidden, torch.tensor([[len(text) - 1]]))[0, 0, len(path)]
    return said


SAMPLINGS = {"greedy": GREEDY, "penalised": WARM, "sampled": SamplingParams(temperature=0.4, seed=2)}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("name", ["block", "draft_model", "eagle", "early_exit", "hydra", "intersection", "medusa"])
def test_what_drafters_say_is_heard(name: str, sampling: SamplingParams) -> None:
    """At every node, as a plain forward or the head's `predict` says it; and it changes neither text nor trees."""
    request = make_request(sampling, max_new_tokens=8)
    engine = Engine(TARGET, build_drafter(name, DRAFT if name == "draft_model" else TARGET), None, "coupled")
    (expected,), stats = serve(engine, [request])
    trace = make_trace(engine, request)
    assert trace.ids == expected
    assert [step.kept for step in trace.steps] == stats.requests[0].accept_lengths
    models = {"draft_model": DRAFT, "early_exit": with_layers(TARGET, [0])}
    text, heard = (*IDS, trace.first), 0
    for step in trace.steps:
        paths: list[tuple[int, ...]] = []
        for node, (token, parent) in enumerate(zip(step.tokens, step.parents, strict=True)):
            paths.append(() if parent < 0 else (*paths[parent], token))
            if node == 0:
                continue
            before, said = (*text, *paths[parent]), step.draft[node]
            if name == "intersection":  # of the tokens that are shared: see its own tests
                assert said is not None
                assert 0 < said <= 1
            elif name in models:
                assert (said or 0) == pytest.approx(float(judged(models[name], sampling, before)[token]), abs=1e-5)
            else:
                probs = processed(predicted(cast(Any, engine.drafter).head, text, paths[parent]), sampling, before)
                assert (said or 0) == pytest.approx(float(probs[token]), abs=1e-5)
            heard += bool(said)
        text += (*step.emitted,)
    assert heard > len(trace.steps)


@pytest.mark.parametrize("drafter", ["ngram", "lookahead", "hybrid", "none"])
@pytest.mark.parametrize("late", [0, 1])
def test_watching_changes_no_text(drafter: str, late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does reading a step late, as on a GPU."""
    request = make_request(SamplingParams(temperature=0.4, seed=2))
    (expected,), stats = serve(Engine(TARGET, drafter, None, "coupled"), [request])
    monkeypatch.setattr(decode, "steps_late", lambda device: late)
    trace = make_trace(Engine(TARGET, drafter, None, "coupled"), request)
    assert trace.ids == expected
    assert [step.kept for step in trace.steps] == stats.requests[0].accept_lengths
    assert sum(len(step.tokens) - 1 for step in trace.steps) == stats.requests[0].nodes
    assert sum(len(step.rider_tokens) for step in trace.steps) == stats.requests[0].riders
    assert "".join(a + b for a, b in trace.pieces) == TOKENIZER.decode(expected, skip_special_tokens=True)
    assert bool(trace.steps[0].rider_tokens) == (drafter == "lookahead")


def test_an_end_within_an_accepted_path() -> None:
    engine = Engine(TARGET, DRAFT, "chain", "coupled")
    whole = make_trace(engine, make_request())
    at, step = next((i, s) for i, s in enumerate(whole.steps) if len(s.drafted) > 1)
    eos = step.tokens[step.path[1]]
    assert eos not in [token for before in whole.steps[:at] for token in before.emitted]
    trace = make_trace(engine, make_request(eos=frozenset([eos])))
    assert trace.steps[-1].kept == len(trace.steps[-1].drafted) == 1
    assert trace.ids == whole.ids[: len(trace.ids)]
    assert trace.ids[-1] == eos


def test_a_text_of_one_token_has_no_steps() -> None:
    trace = make_trace(Engine(TARGET, "ngram", None, "coupled"), make_request(max_new_tokens=1))
    assert (trace.steps, len(trace.ids), len(trace.pieces)) == ([], 1, 1)


# --- whose nodes


class Fixed:
    """Proposes the same paths at every step."""

    def __init__(self, *paths: list[int]):
        self.paths, self.needs = list(paths), DraftNeeds(max_nodes=8)

    def open(self, capacity: int, max_length: int, device: torch.device) -> None: ...

    def start(self, *_: object) -> None: ...

    def observe(self, *_: object) -> None: ...

    def propose(self, state: None, roots: Tensor, noise: object) -> TokenTree:
        return TokenTree.from_paths(roots.tolist(), [self.paths] * len(roots))


class Other(Fixed):
    """Another class."""


@pytest.mark.parametrize("within", [False, True])
def test_whose_a_node_is(within: bool) -> None:
    """One that several parts proposed is all of theirs; also where the parts lie deeper."""
    parts: Any = [Fixed([1, 2]), Fixed([3]), Other([1, 4], [3])]
    drafter = Adaptive(Hybrid(parts)) if within else Hybrid(parts)
    trace = make_trace(Engine(TARGET, drafter, None, "coupled"), make_request())
    step = trace.steps[0]
    assert step.tokens[1:] == [1, 2, 3, 4]
    tokens = {name: [step.tokens[j] for j in nodes] for name, nodes in step.sources.items()}
    assert tokens == {"Fixed 1": [1, 2], "Fixed 2": [3], "Other": [1, 3, 4]}


# --- time


def test_the_clock_leaves_out_what_it_was_stopped_for(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 101.0, 102.0, 103.0, 108.0, 109.0, 110.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = Clock(torch.device("cpu"))  # 100
    clock.begin()  # 101
    clock.lap("draft")  # 102
    with clock.stopped():  # 103 to 108
        pass
    clock.lap("verify")  # 109
    assert clock.spans == [("draft", 1.0, 2.0), ("verify", 2.0, 4.0)]
    assert clock.now() == 5.0


def test_phases_come_one_after_the_other() -> None:
    trace = real_trace()
    now = trace.prefill
    assert now > 0
    for step in trace.steps:
        assert [span.phase for span in step.spans] == ["draft", "verify", "accept", "commit", "draft"]
        for span in step.spans:
            assert now <= span.begin <= span.end
            now = span.end
    step = trace.steps[0]
    assert step.seconds("draft") == pytest.approx(sum(step.spans[j].end - step.spans[j].begin for j in (0, 4)))


# --- the file


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    traces = [real_trace(), replace(real_trace(8), method="other", question_id="a")]
    file = tmp_path / "trace.jsonl"
    write_traces(file, traces)
    assert read_traces(file) == traces
    file.write_text('{"method": "old"}\n')
    with pytest.raises(ValueError, match="is no trace of this version"):
        read_traces(file)
    with pytest.raises(ValueError, match="record one with: specdec run"):
        read_traces(tmp_path / "nothing")


def test_drafters_that_have_no_parts_tell_of_none() -> None:
    trace = make_trace(Engine(TARGET, Adaptive(Fixed([1, 2])), None, "coupled"), make_request())
    assert all(step.sources == {} for step in trace.steps)
