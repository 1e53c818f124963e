"""A step on the device: it asks the host nothing, what outlives it stays where it is, and graphs repeat it.

Tensors on torch's meta device have shapes and no contents: whatever reads one to the host fails. They take the code's
way for GPUs, where kernels are Triton's; here their launches are counted and do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedModel

from specdec import inspection
from specdec.acceptance.block import Block
from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.relaxed import Relaxed
from specdec.acceptance.traversal import Traversal
from specdec.acceptance.typical import Typical
from specdec.capture import CapturedStep, Graphs, rehearse
from specdec.core import AcceptanceRule, Drafter, DraftNeeds, TargetOutput
from specdec.decode import decode
from specdec.drafters.adaptive import Adaptive
from specdec.drafters.block import Block as BlockDrafter
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.eagle import Eagle
from specdec.drafters.early_exit import EarlyExit
from specdec.drafters.hydra import Hydra
from specdec.drafters.lookahead import Lookahead
from specdec.drafters.medusa import Medusa
from specdec.drafters.ngram import DeviceTexts, NGram
from specdec.drafters.none import NoDrafter
from specdec.drafters.recycling import Recycling
from specdec.drafters.suffix import Suffix
from specdec.engine import Engine
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.step import Step, unheard
from specdec.target import Target, attach
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from .fakes import Scripted
from .heads import make_head
from .models import VOCAB, make_config, make_model

CAPACITY, MAX_LENGTH = 3, 40
RULES: list[AcceptanceRule] = [Coupled(), Rejection()]
DRAWN_RULES: list[AcceptanceRule] = [Block(), Traversal(), Typical(), Relaxed()]
DRAWING = ["draft_model, chain", "draft_model, static", "draft_model, replacement", "early_exit", "medusa"]
SAMPLED = SamplingParams(temperature=0.7, seed=3)
SETTINGS = {
    "greedy": SamplingParams(),
    "sampled": SAMPLED,
    "filtered": SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01),
    "penalised": SamplingParams(temperature=1.0, repetition_penalty=1.2),
}


class BegunRecycling(Recycling):
    """Its table is made when the first request enters; the steps below have none that enters."""

    def open(self, capacity: int, max_length: int, device: torch.device) -> Any:
        state = super().open(capacity, max_length, device)
        self.start(state, [0], [[1]], TargetOutput(torch.zeros(1, 1, VOCAB, device=device)))
        return state


DRAFTERS: dict[str, Callable[[PreTrainedModel], Drafter]] = {
    "none": lambda _: NoDrafter(),
    "ngram": lambda _: NGram(),
    "lookahead": lambda _: Lookahead(window=3, ngram=3, guesses=2),
    "recycling": lambda _: BegunRecycling(StaticTree(paths=[[0], [1], [0, 0], [0, 1], [0, 0, 0]])),
    "draft_model, chain": lambda model: DraftModel(model, chain(3)),
    "draft_model, static": lambda model: DraftModel(model, StaticTree(paths=[[0], [1], [0, 0], [0, 1]])),
    "draft_model, replacement": lambda model: DraftModel(model, StaticTree([[0], [1], [0, 0], [0, 1]], True)),
    "draft_model, best_first": lambda model: DraftModel(model, BestFirst(max_nodes=8, depth=3, top_k=3)),
    "medusa": lambda model: Medusa(make_head("medusa", Target(model)), StaticTree(paths=[[0], [1], [0, 0], [0, 1]])),
    "hydra": lambda model: Hydra(make_head("hydra", Target(model)), BestFirst(max_nodes=8, depth=3, top_k=3)),
    "early_exit": lambda _: EarlyExit(exit_layer=1, tree=StaticTree(paths=[[0], [1], [0, 0], [0, 1]])),
    "eagle": lambda model: Eagle(make_head("eagle", Target(model)), BestFirst(max_nodes=8, depth=3, top_k=3)),
    "block": lambda model: BlockDrafter(make_head("block", Target(model)), BestFirst(max_nodes=8, depth=3, top_k=3)),
}


def put_together(model: PreTrainedModel, drafter: Drafter) -> tuple[Target, Drafter]:
    """As the engine does."""
    target = Target(model, hidden_layers=drafter.needs.hidden_layers)
    return target, attach(drafter, target)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the Triton kernels launched; none of them runs."""
    jit = pytest.importorskip("triton.runtime.jit")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    names: list[str] = []

    def launcher(kernel: Any, grid: object) -> Callable[..., None]:
        return lambda *_, **__: names.append(kernel.fn.__name__)

    for kind in (jit.JITFunction, interpreter.InterpretedFunction):
        monkeypatch.setattr(kind, "__getitem__", launcher)
    return names


@pytest.fixture
def shapes_only(monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A model without contents."""
    monkeypatch.setattr(inspection, "check_logits", lambda target: None)  # looks at numbers, before any step
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(make_config("llama")).eval()


class NothingFromTheHost(TorchDispatchMode):
    """Refuses tensors of the CPU beside those of the device, and tensors made of Python's numbers: a graph would read
    the host's memory again when it is replayed."""

    def __enter__(self) -> Self:
        self._patch = pytest.MonkeyPatch()
        for name in ("tensor", "as_tensor"):
            self._patch.setattr(torch, name, self._refuse)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patch.undo()
        super().__exit__(*error)

    @staticmethod
    def _refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("a step makes a tensor of numbers of the host")

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        assert all(x.device.type == "meta" for x in given), f"{operation} gets a tensor of the host"
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_step_reads_nothing_to_the_host(drafter: str, launches: list[str], shapes_only: PreTrainedModel) -> None:
    """With every rule and settings: what a step proposes depends on the settings and on whose noise it gets, what it
    decides on the rule."""
    made = DRAFTERS[drafter](shapes_only)
    assert made.needs.on_device
    step = Step(*put_together(shapes_only, made), RULES[0], CAPACITY, MAX_LENGTH)
    with torch.inference_mode():
        step([1], unheard)  # makes what is made once
    for settings in SETTINGS.values():
        step.sampler.reset()
        step.sampler.start(1, settings, [1, 2])
        assert step.sampler.kinds  # settings go to the device before the step
        for step.rule in RULES:
            launches.clear()
            with torch.inference_mode(), NothingFromTheHost():
                record = step([1], unheard)
            assert record.shape[0] == CAPACITY
            assert record.shape[1] >= 6
            assert {"tree_attention_split_kernel", "kv_write_kernel", "kv_commit_kernel"} <= set(launches)
        trees: dict[bool, TokenTree] = {}
        for step.rule in DRAWN_RULES * (drafter in DRAWING):
            shared = step.rule.shared_noise
            with torch.inference_mode(), NothingFromTheHost():
                tree = trees[shared] = trees.get(shared) or step.propose([1])
                verdict, output, record = step.decide(tree, [1], unheard)
                step.drafter.observe(step.state, tree, verdict, output)
            assert record.shape[0] == CAPACITY


def tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors reachable from a state."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | set):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part, seen)
    elif type(value).__module__.startswith("specdec"):
        names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
        for name in names:
            yield from tensors(getattr(value, name, None), seen)


@pytest.mark.parametrize("what", ["reads", "makes", "brings"])
def test_the_host_is_seen(what: str, launches: list[str], shapes_only: PreTrainedModel) -> None:
    class FromTheHost(NoDrafter):
        def observe(self, state: None, tree: Any, verdict: Any, output: Any) -> None:
            if what == "makes":
                verdict.num_accepted + torch.tensor([1], device="meta")
            elif what == "brings":
                verdict.num_accepted.copy_(torch.zeros(CAPACITY))
            else:
                verdict.num_accepted.tolist()

    step = Step(Target(shapes_only), FromTheHost(), Coupled(), CAPACITY, MAX_LENGTH)
    refused = pytest.raises((AssertionError, NotImplementedError, RuntimeError))
    with torch.inference_mode(), refused, NothingFromTheHost():
        step([0], unheard)


class Operations(TorchDispatchMode):
    """What is run, with shapes and numbers."""

    def __init__(self, launches: list[str]):
        super().__init__()
        self.seen: list[str] = []
        self.launches = launches

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [tuple(x.shape) if isinstance(x, Tensor) else x for x in tree_leaves((args, kwargs))]
        self.seen.append(f"{len(self.launches)} {operation} {given}")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__.lower())
@pytest.mark.parametrize("drafter", ["none", "draft_model, chain", "draft_model, best_first"])
def test_equal_kinds_run_the_same_operations(
    drafter: str, rule: AcceptanceRule, launches: list[str], shapes_only: PreTrainedModel
) -> None:
    """Graphs are kept by kinds: whatever else the host decided by would be replayed as it was."""
    other = [replace(params, seed=9, temperature=1.3 * params.temperature) for params in SETTINGS.values()]
    sets = [[params] for params in SETTINGS.values()] + [[params] for params in other]
    sets += [[*SETTINGS.values()][:3], [SamplingParams(), SAMPLED], [SAMPLED, SamplingParams(), SAMPLED]]
    found: dict[object, list[str]] = {}
    step = Step(*put_together(shapes_only, DRAFTERS[drafter](shapes_only)), rule, CAPACITY, MAX_LENGTH)
    with torch.inference_mode():
        step([0], unheard)  # makes what is made once
    for chosen in sets:
        step.sampler.reset()
        for slot, params in enumerate(chosen):
            step.sampler.start(slot, params, [1, 2])
        kinds = step.sampler.kinds
        launches.clear()
        with torch.inference_mode(), Operations(launches) as operations:
            step([0], unheard)
        assert found.setdefault(kinds, operations.seen) == operations.seen
    assert len(found) == len(SETTINGS)


def test_a_request_that_ends_changes_no_kind_on_a_gpu(shapes_only: PreTrainedModel) -> None:
    """Else a step in the midst of serving would wait for a new graph."""
    sampler = Step(Target(shapes_only), NoDrafter(), Coupled(), CAPACITY, MAX_LENGTH).sampler
    sampler.start(0, SETTINGS["filtered"], [1])
    sampler.start(1, SETTINGS["penalised"], [1])
    kinds = sampler.kinds
    sampler.stop(0)
    sampler.stop(1)
    assert sampler.kinds == kinds
    sampler.reset()
    assert sampler.kinds != kinds


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_what_outlives_a_step_stays_where_it_is(
    drafter: str, launches: list[str], shapes_only: PreTrainedModel
) -> None:
    """A CUDA graph writes to the tensors that it was captured with: a new one in their place would never be seen."""
    step = Step(*put_together(shapes_only, DRAFTERS[drafter](shapes_only)), Coupled(), CAPACITY, MAX_LENGTH)
    step.sampler.start(0, SETTINGS["penalised"], [1, 2])
    assert step.sampler.kinds
    with torch.inference_mode():
        before = {id(x): x for x in tensors(step)}
        step([0], unheard)
        step.sampler.stop(0)
        step.sampler.start(2, SETTINGS["filtered"], [3])
        assert step.sampler.kinds
        step([2], unheard)
    assert len(before) >= 7
    assert before.keys() <= {id(x) for x in tensors(step)}


class Replayed:
    """Stands for a graph on the CPU: runs the function again, into the tensors that it first returned."""

    def __init__(self, function: Callable[[], Any]):
        self._function = function
        self._result: Any = None

    def replay(self) -> Any:
        made = self._function()
        if self._result is None:
            self._result = made
        for old, new in zip(list(tensors(self._result)), list(tensors(made)), strict=True):
            old.copy_(new)
        return self._result


TEXTS = [([5, 6, 7, 5, 6], 20), ([11], 13), ([2, 3, 2, 3, 2, 3, 2], 25), ([9, 8], 1), ([4] * 12, 9)]
REQUESTS = [Request(prompt, count, SAMPLED if i % 2 else SamplingParams()) for i, (prompt, count) in enumerate(TEXTS)]


def served(step: Step, stats: DecodingStats | None = None) -> list[list[int]]:
    """New tokens of REQUESTS."""
    texts = {g.index: g.new_ids for g, _ in decode(step, REQUESTS, stats) if g.finished}
    return [texts[i] for i in range(len(REQUESTS))]


@cache
def plain_texts() -> list[list[int]]:
    """Plain decoding's, of `make_model(dtype=torch.float64)`."""
    return served(Step(Target(make_model(dtype=torch.float64)), NoDrafter(), Coupled(), CAPACITY, MAX_LENGTH))


class DeviceNGram(NGram):
    """As on a GPU: one shape of tree."""

    def open(self, capacity: int, max_length: int, device: torch.device) -> DeviceTexts:
        return DeviceTexts(self, capacity, max_length, device)


@pytest.mark.parametrize(
    "name",
    "ngram; recycling; early_exit; draft_model, chain; draft_model, best_first; medusa; hydra; eagle; block; "
    "eagle, sizes change; scripted".split("; "),
)
def test_captured_steps_write_the_same_texts(name: str) -> None:
    model, plain = make_model(dtype=torch.float64), plain_texts()
    texts = {tuple(r.prompt): t for r, t in zip(REQUESTS, plain, strict=True)}
    own: dict[str, Drafter] = {"scripted": Scripted(texts, hit=0.7, max_nodes=7), "ngram": DeviceNGram()}
    if name == "eagle, sizes change":  # proposals outside of the graph, some of 0 levels
        own[name] = Adaptive(DRAFTERS["eagle"](model), 0.15, 0.05, allowance=0.1)
    drafter: Drafter = own.get(name) or DRAFTERS[name](model)
    made: list[Replayed] = []

    def make(function: Callable[[], Any]) -> Replayed:
        made.append(Replayed(function))
        return made[-1]

    step = CapturedStep(*put_together(model, drafter), Coupled(), CAPACITY, MAX_LENGTH, Graphs(make))
    for _ in range(2):  # the second time with the first one's graphs
        assert served(step) == plain
        count = len(made)
        step.reset()
    assert len(made) == count
    assert count > 2 if name == "scripted" else count >= 1  # a graph for every bucket


def test_captured_steps_hold_how_siblings_were_drawn() -> None:
    """A rule that draws otherwise writes other texts; drafts that are the target's own would hide it."""
    parts = Target(make_model(dtype=torch.float64)), DRAFTERS["draft_model, replacement"](make_model("qwen3"))
    captured = CapturedStep(*parts, Rejection(), CAPACITY, MAX_LENGTH, Graphs(Replayed))
    texts = served(captured)
    assert texts == served(Step(*parts, Rejection(), CAPACITY, MAX_LENGTH))
    assert all(tree.replacement == (tree.draft_probs is not None) for tree in captured._trees.values())


@pytest.mark.parametrize("captured", [False, True])
def test_a_tree_cut_off_or_held_is_as_deep_as_its_policy(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a drafter that gathers what was accepted would gather as many rows as the tree has nodes."""
    model, seen = make_model(dtype=torch.float64), set[tuple[int, bool]]()
    observe = Eagle.observe

    def looking(self: Eagle, state: Any, tree: Any, verdict: Any, output: Any) -> None:
        assert int(tree.depths.max()) <= tree.most_depth <= 3
        seen.add((tree.most_depth, tree.max_nodes == 8))
        observe(self, state, tree, verdict, output)

    monkeypatch.setattr(Eagle, "observe", looking)
    parts = put_together(model, Adaptive(DRAFTERS["eagle"](model), 0.15, 0.05, allowance=0.1))
    plain = served(Step(parts[0], NoDrafter(), Coupled(), CAPACITY, MAX_LENGTH))
    made = (CapturedStep, Graphs(Replayed)) if captured else (Step,)
    assert served(made[0](*parts, Coupled(), CAPACITY, MAX_LENGTH, *made[1:])) == plain
    assert len(seen) > 1


@pytest.mark.parametrize("name", ["none", "host"])
def test_rehearsal_meets_every_bucket(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = Target(make_model())
    drafter: Drafter = NoDrafter()
    if name == "host":
        drafter = NGram(max_nodes=7)
        drafter.needs = DraftNeeds(max_nodes=7)
    made: list[Callable[[], Any]] = []

    def make(function: Callable[[], Any]) -> Replayed:
        made.append(function)
        return Replayed(function)

    step = CapturedStep(target, drafter, Coupled(), 2, MAX_LENGTH, Graphs(make))
    rehearse(step, SAMPLED)
    assert len(made) == (4 if name == "host" else 1)  # trees of 1, 2, 4 and 7 nodes
    assert target.lengths.tolist() == [0, 0]
    assert "compiling" in capsys.readouterr().err


def test_old_graphs_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.capture.MOST_GRAPHS", 2)
    made: list[int] = []

    def make(function: Callable[[], int]) -> Any:
        made.append(function())
        return type("Graph", (), {"replay": staticmethod(function)})

    graphs = Graphs(make)
    for key in (1, 1, 2, 2, 3, 3, 2, 1):
        assert graphs(key, partial(int, key)) == key
    assert made == [1, 2, 3, 1]


def test_buffers_serve_as_long_as_they_are_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """One set of graphs for any number of requests up to the most, until weights lie elsewhere."""
    monkeypatch.setattr("specdec.capture.Graph", lambda function, pool: Replayed(function))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    model = make_model(dtype=torch.float64)
    plain = served(Step(Target(model), NoDrafter(), Coupled(), len(TEXTS), MAX_LENGTH))
    engine = Engine(model, "none", None, "coupled")
    engine._captures = True

    def run(count: int) -> CapturedStep | None:
        done = {g.index: g.new_ids for g, _ in engine.run(REQUESTS[:count], DecodingStats()) if g.finished}
        assert [done[i] for i in range(count)] == plain[:count]
        return engine._captured

    first = run(3)
    assert run(1) is first
    assert run(2) is first
    more = run(5)
    assert more is not first
    assert run(3) is more
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(1.0)
    assert run(3) is more
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    assert run(3) is not more


@pytest.mark.parametrize("late", [1, 3])
def test_reading_late_changes_no_text(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has ended stays in its slot for a step more; nothing of that shows, but in the number of forwards."""
    model = make_model(dtype=torch.float64)
    longest = max(len(prompt) + count for prompt, count in TEXTS)
    target, long = Target(model), longest + (late - 1) * 8  # exactly as long as they get, if the host is a step late

    def run(drafter: Drafter) -> tuple[list[list[int]], DecodingStats]:
        stats = DecodingStats()
        texts = {
            g.index: g.new_ids
            for g, _ in decode(Step(target, drafter, Coupled(), 2, long), REQUESTS, stats)
            if g.finished
        }
        return [texts[i] for i in range(len(REQUESTS))], stats

    drafters: list[Drafter] = [NoDrafter(), NGram(max_nodes=8), DraftModel(model, chain(3))]
    drafters += [Suffix(remember=0), Recycling(chain(3), remember=False), Lookahead(3, 3, 2)]
    drafters += [EarlyExit(exit_layer=1).attach(target)]
    before = [run(drafter) for drafter in drafters]
    monkeypatch.setattr("specdec.decode.steps_late", lambda device: late)
    for drafter, (texts, stats) in zip(drafters, before, strict=True):
        again, counted = run(drafter)
        assert again == texts
        assert counted.accept_lengths == stats.accept_lengths
        assert [r.nodes for r in counted.requests] == [r.nodes for r in stats.requests]
        assert counted.forwards > stats.forwards


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@pytest.mark.parametrize("name", DRAFTERS)
def test_graphs_on_a_gpu_write_the_same_texts(name: str, rule: str, settings: str) -> None:
    """Captured and eager, by the same kernels: the same numbers."""
    model = make_model(dtype=torch.float32).cuda()
    prompts = [[5, 6, 7, 5, 6], [11], [2, 3, 2, 3, 2, 3, 2]]
    requests = [Request(prompt, 24, SETTINGS[settings]) for prompt in prompts]
    texts = []
    for compile in (False, True, True):
        engine = Engine(model, DRAFTERS[name](model), None, rule, compile=compile)
        engine.warmup(2, MAX_LENGTH, SETTINGS[settings])
        for _ in range(2):
            done = {g.index: g.new_ids for g, _ in engine.run(requests, DecodingStats(), 2) if g.finished}
            texts.append([done[i] for i in range(3)])
    assert all(text == texts[0] for text in texts)
