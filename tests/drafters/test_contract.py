"""What every drafter in conf/drafter owes the loop. A new yaml is tested here by being there."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from specdec import registry
from specdec.cache import ROOM_STEP, TreeCache
from specdec.core import Drafter, forget, own_kv_bytes
from specdec.engine import Engine, serve
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.target import Target, attach
from specdec.tree.token_tree import TokenTree

from ..fakes import Harness, check_shape, write_datastore
from ..heads import make_head
from ..models import byte_tokenizer, make_model

VOCAB = 40
PROMPTS = [[5, 6, 7, 5, 6], [1], [2, 3, 2, 3, 2, 3, 2], [9, 8], [4] * 12]
NAMES = registry.names("drafter")
REMEMBERING = {"adaptive", "hybrid", "recycling", "suffix"}  # over requests
MODES = {  # settings, shared noise
    "greedy": (SamplingParams(), True),
    "greedy, own noise": (SamplingParams(), False),
    "sampled, shared noise": (SamplingParams(temperature=0.9, seed=3), True),
    "sampled, own noise": (SamplingParams(temperature=0.9, top_k=6, repetition_penalty=1.2, seed=3), False),
}


def make_spec(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The yaml with those of the settings that it and the drafters within it take."""
    spec = yaml.safe_load((registry.CONF / "drafter" / f"{name}.yaml").read_text())
    taken = inspect.signature(registry.find_target(spec["_target_"])).parameters
    if "head" in taken:
        spec["head"] = make_head(name, Target(settings["model"]))
    spec |= {key: value for key, value in settings.items() if key in taken}
    if isinstance(spec.get("remember"), int) and isinstance(taken["remember"].default, bool):  # not a number of texts
        spec["remember"] = bool(spec["remember"])
    if isinstance(spec.get("drafter"), str):
        spec["drafter"] = make_spec(spec["drafter"], settings)
    if "drafters" in spec:
        spec["drafters"] = [make_spec(part, settings) for part in spec["drafters"]]
    return spec


@cache
def corpus() -> Path:
    """A datastore of random texts, some of whose tokens the made-up target does not know."""
    texts = torch.randint(0, VOCAB + 9, (40, 20), generator=torch.Generator().manual_seed(1)).tolist()
    return write_datastore(Path(tempfile.mkdtemp()) / "datastore.bin", texts, VOCAB + 10)


def build_drafter(name: str, model: PreTrainedModel, **settings: Any) -> Drafter:
    """As the yaml says, but for this draft model, a tiny corpus, tokenizers of letters, and random heads for targets
    like that model; attached to none yet."""
    tokenizer = byte_tokenizer()
    tiny = {"path": corpus(), "exit_layer": 1, "skip": None, "tokenizer": tokenizer, "draft_tokenizer": tokenizer}
    made: Drafter = registry.build("drafter", make_spec(name, {**tiny, "model": model, **settings}))
    return made


@cache
def make_drafter(name: str, **settings: Any) -> Drafter:
    """With a tiny draft model in float64, where batching changes no token, which is the target, too. One object for all
    tests: it serves many decoders."""
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    made = build_drafter(name, model, **settings)
    return attach(made, Target(model, hidden_layers=made.needs.hidden_layers))


@pytest.fixture(params=NAMES)
def drafter(request: pytest.FixtureRequest) -> Drafter:
    made = make_drafter(request.param)
    forget(made)
    return made


@pytest.fixture(params=NAMES)
def forgetful(request: pytest.FixtureRequest) -> Drafter:
    """Without what it learns from other requests, or does for the sake of the batch: these may change drafts, if never
    a text."""
    return make_drafter(request.param, remember=0, curve=0.0)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> tuple[SamplingParams, bool]:
    return MODES[request.param]


def check_tree(tree: TokenTree, harness: Harness, roots: torch.Tensor) -> None:
    check_shape(tree)
    assert tree.batch_size == len(roots)
    assert tree.max_nodes <= harness.drafter.needs.max_nodes
    assert ((tree.sizes > 0) == (roots >= 0)).all()
    assert torch.equal(tree.tokens[roots >= 0, 0], roots[roots >= 0])
    assert ((tree.tokens >= 0) & (tree.tokens < harness.vocab)).all()
    if tree.draft_probs is None:
        return
    assert not harness.shared
    assert tree.draft_probs.shape == (*tree.tokens.shape, harness.vocab)
    for b in range(len(roots)):
        for j in range(int(tree.sizes[b])):
            children = (tree.parents[b] == j).nonzero()[:, 0]
            if len(children):
                row = tree.draft_probs[b, j]
                assert float(row.sum()) == pytest.approx(1, abs=1e-5)
                assert len(tree.tokens[b, children].unique()) == len(children)
                assert (row[tree.tokens[b, children[0]]] > 0).all()


def test_trees_are_valid(drafter: Drafter, mode: tuple[SamplingParams, bool]) -> None:
    """Through steps in which slots are empty, enter, leave and enter again."""
    harness = Harness(drafter, 4, VOCAB, *mode)
    harness.enter([1, 3], [PROMPTS[0], PROMPTS[1]])
    events = {2: ("enter", 0, PROMPTS[2]), 4: ("leave", 3, []), 6: ("enter", 3, PROMPTS[3]), 7: ("leave", 1, [])}
    for number in range(9):
        if number in events:
            what, slot, prompt = events[number]
            harness.enter([slot], [prompt]) if what == "enter" else harness.leave(slot)
        roots = harness.roots.clone()
        check_tree(harness.step(), harness, roots)


def trace(harness: Harness, slot: int, steps: int) -> list[tuple[list[int], list[list[int]]]]:
    """The text before every step, and the tree's paths."""
    seen = []
    for _ in range(steps):
        text = list(harness.texts[slot])
        seen.append((text, harness.step().paths(slot)))
    return seen


def test_a_slot_does_not_see_its_neighbours(forgetful: Drafter, mode: tuple[SamplingParams, bool]) -> None:
    together = Harness(forgetful, 5, VOCAB, *mode)
    together.enter([0, 2, 3, 4], [PROMPTS[0], PROMPTS[2], PROMPTS[3], PROMPTS[4]])
    alone = Harness(forgetful, 1, VOCAB, *mode)  # the same drafter object serves both
    alone.enter([0], [PROMPTS[2]])
    for _ in range(6):
        assert trace(together, 2, 1) == trace(alone, 0, 1)


def test_a_slot_does_not_see_who_was_there_before(forgetful: Drafter, mode: tuple[SamplingParams, bool]) -> None:
    used = Harness(forgetful, 2, VOCAB, *mode)
    used.enter([0, 1], [PROMPTS[4], PROMPTS[2]])
    trace(used, 0, 5)
    used.leave(0)
    trace(used, 1, 2)
    used.enter([0], [PROMPTS[0]])
    fresh = Harness(forgetful, 1, VOCAB, *mode)
    fresh.enter([0], [PROMPTS[0]])
    assert trace(used, 0, 5) == trace(fresh, 0, 5)


def test_all_accepted_and_none_accepted(drafter: Drafter) -> None:
    """Both ends: whole paths down to a leaf, and nothing but the root."""
    for acceptance in (1.0, 0.0):
        harness = Harness(drafter, 2, VOCAB, SamplingParams(), True)
        harness.acceptance = acceptance
        harness.enter([0, 1], [PROMPTS[0], PROMPTS[4]])
        for _ in range(6):
            roots = harness.roots.clone()
            check_tree(harness.step(), harness, roots)


def test_entering_one_by_one_or_together(forgetful: Drafter) -> None:
    one_by_one, together = (Harness(forgetful, 2, VOCAB, SamplingParams(), True) for _ in range(2))
    one_by_one.enter([1], [PROMPTS[0]])
    one_by_one.enter([0], [PROMPTS[2]])
    together.enter([0, 1], [PROMPTS[2], PROMPTS[0]])
    for slot in (0, 1):
        assert trace(one_by_one, slot, 2) == trace(together, slot, 2)


def test_an_empty_prompt(forgetful: Drafter, mode: tuple[SamplingParams, bool]) -> None:
    """In flight, a request of one token has nothing before its root; what was in the slot before is forgotten."""
    used = Harness(forgetful, 3, VOCAB, *mode)
    used.enter([0, 2], [PROMPTS[4], PROMPTS[2]])
    trace(used, 0, 4)
    used.leave(0)
    used.enter([0, 1], [[], PROMPTS[3]])
    fresh = Harness(forgetful, 1, VOCAB, *mode)
    fresh.enter([0], [[]])
    for _ in range(4):
        roots = used.roots.clone()
        text = list(used.texts[0])
        tree = used.step()
        check_tree(tree, used, roots)
        assert (text, tree.paths(0)) == trace(fresh, 0, 1)[0]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_learnt_is_forgotten(name: str) -> None:
    """After `forget` the same requests are served as they were the first time."""
    model = make_model(vocab_size=VOCAB + 10, dtype=torch.float64)  # as many as the datastore has
    engine = Engine(model, build_drafter(name, model), None, "coupled")

    def served() -> list[tuple[list[int], int]]:
        groups = [[PROMPTS[0]], PROMPTS[2:4]]
        stats = [serve(engine, [Request(prompt, 12, SamplingParams()) for prompt in group])[1] for group in groups]
        return [(r.accept_lengths, r.nodes) for part in stats for r in part.requests]

    first = served()
    assert (served() != first) == (name in REMEMBERING)
    forget(engine.drafter)
    assert served() == first


class Asked:
    """The drafter, asked for so many levels."""

    def __init__(self, drafter: Any):
        self.drafter, self.levels = drafter, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)

    def propose(self, *given: Any) -> TokenTree:
        tree: TokenTree = self.drafter.propose(*given, levels=self.levels)
        return tree


def test_fewer_levels_change_nothing_that_comes_after(forgetful: Drafter, mode: tuple[SamplingParams, bool]) -> None:
    """A drafter that takes levels reads what it had to read when it is asked for more, of requests that came meanwhile
    as well, and nothing of those that went."""
    if not getattr(forgetful, "takes_levels", False):
        pytest.skip("takes no levels")
    whole, fewer = (Harness(forgetful, 3, VOCAB, *mode) for _ in range(2))
    asked: Any = Asked(fewer.drafter)
    fewer.drafter = asked
    for harness in (whole, fewer):
        harness.acceptance = 0.0  # so that both have the same texts
        harness.enter([0, 2], [PROMPTS[0], PROMPTS[2]])
    for number, levels in enumerate([None, 0, 0, 1, None, 2, 0, 0, 0, None, None]):
        for harness in (whole, fewer) if number in (2, 8) else ():
            left, entering = (0, 1) if number == 2 else (2, 2)
            harness.leave(left)
            harness.enter([entering], [PROMPTS[3 + entering % 2]])
        asked.levels = levels
        roots = fewer.roots.clone()
        tree = fewer.step()
        check_tree(tree, fewer, roots)
        wanted = whole.step()
        if levels is not None and hasattr(forgetful, "policy"):  # the others leave out all or nothing
            assert int(tree.depths.max()) <= levels
        if levels is None:
            assert [tree.paths(slot) for slot in whole.texts] == [wanted.paths(slot) for slot in whole.texts]


def caches(state: object) -> Iterator[TreeCache]:
    """All that a state holds."""
    if isinstance(state, TreeCache | Target):
        yield state.cache if isinstance(state, Target) else state
    elif is_dataclass(state):
        for each in fields(state):
            yield from caches(getattr(state, each.name))
    elif isinstance(state, list):
        for part in state:
            yield from caches(part)


@pytest.mark.parametrize("name", NAMES)
def test_the_kv_of_its_own_is_what_it_says(name: str) -> None:
    """On a CPU, where a slot's room is not rounded up, as it is where the KV is only counted."""
    model = make_model(vocab_size=VOCAB)
    made = build_drafter(name, model)
    target = Target(model, hidden_layers=made.needs.hidden_layers)
    drafter = attach(made, target)
    target.open(3, 50, drafter.needs.room)
    found = [c for c in caches(drafter.open(3, 50, target.device)) if c.arenas[0] is not target.cache.arenas[0]]
    rounded = sum(c.nbytes // c.room * -(-c.room // ROOM_STEP) * ROOM_STEP for c in found)
    assert own_kv_bytes(drafter, 3, 50, target.device) == rounded
    assert own_kv_bytes(drafter, 3, 50, torch.device("meta")) in (0, rounded)  # of a model that is elsewhere, or a head
    assert bool(found) == (name in ("draft_model", "eagle", "block", "universal", "intersection"))
