"""Token Recycling against a dictionary, and what it remembers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import specdec
from specdec import registry
from specdec.core import TargetOutput, Verdict
from specdec.drafters.recycling import Recycling, State
from specdec.sampling import DraftNoise, Sampler
from specdec.tree.best_first import BestFirst
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..fakes import CPU, check_shape
from ..models import make_model, own_texts, ragged_batch

VOCAB = 12
TREE = StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]])
NO_VERDICT: Any = None  # it is not looked at


def noise_of(slots: int) -> DraftNoise:
    return Sampler(slots, VOCAB, CPU).at(torch.zeros(slots, dtype=torch.int64), 9, []).draft_noise(True)


def begin(drafter: Recycling, prompts: dict[int, list[int]], slots: int, logits: torch.Tensor) -> State:
    state = drafter.open(slots, 50, CPU)
    drafter.start(state, list(prompts), list(prompts.values()), TargetOutput(logits))
    return state


def naive_tree(tables: list[dict[int, list[int]]], root: int) -> tuple[list[int], list[int]]:
    """Of several tables the first that knows a token."""
    tokens, parents = [root], [-1]
    places: dict[tuple[int, ...], int] = {(): 0}
    for path in TREE.paths:
        parent = places.get(path[:-1])
        known = [] if parent is None else [table[tokens[parent]] for table in tables if tokens[parent] in table]
        if parent is not None and known:
            places[path] = len(tokens)
            tokens.append(known[0][path[-1]])
            parents.append(parent)
    return tokens, parents


@pytest.mark.parametrize("remember", [True, False])
def test_as_a_dictionary_would(remember: bool) -> None:
    """Random logits for random trees in three slots, one of them empty now and then."""
    drafter = Recycling(TREE, remember)
    prompts = {0: [3, 1], 1: [2], 2: [4, 4, 4]}
    logits = torch.randn(3, 1, VOCAB)
    state = begin(drafter, prompts, 3, logits)
    common: dict[int, list[int]] = {}
    own: list[dict[int, list[int]]] = [{}, {}, {}]

    def learn(slot: int, token: int, row: torch.Tensor) -> None:
        own[slot][token] = row.topk(3).indices.tolist()
        if remember:
            common[token] = own[slot][token]

    for slot, prompt in prompts.items():
        learn(slot, prompt[-1], logits[slot, 0])
    rng = random.Random(0)
    for number in range(12):
        if number == 6:  # another request in the last slot
            own[2] = {}
            logits = torch.randn(1, 1, VOCAB)
            drafter.start(state, [2], [[5, 0]], TargetOutput(logits))
            learn(2, 0, logits[0, 0])
        roots = torch.tensor([rng.randrange(-1, VOCAB) for _ in range(3)])
        tree = drafter.propose(state, roots, noise_of(3))
        check_shape(tree)
        expected = TokenTree.from_lists(
            [naive_tree([own[s], common], root) if root >= 0 else ([], []) for s, root in enumerate(roots.tolist())]
        )
        assert torch.equal(tree.sizes, expected.sizes)
        assert torch.equal(tree.tokens[:, : expected.max_nodes], expected.tokens)
        assert torch.equal(tree.parents[:, : expected.max_nodes], expected.parents)
        logits = torch.randn(3, tree.max_nodes, VOCAB)
        drafter.observe(state, tree, NO_VERDICT, TargetOutput(logits))
        for slot in range(3):
            for node in range(int(tree.sizes[slot])):
                learn(slot, int(tree.tokens[slot, node]), logits[slot, node])


def test_texts_do_not_write_over_each_other() -> None:
    """Two slots that think differently of one token each draft what they think; a third what was thought last."""
    drafter = Recycling(chain(1))
    state = begin(drafter, {0: [1], 1: [1], 2: [2]}, 3, torch.eye(VOCAB)[[4, 7, 9]][:, None])
    tree = drafter.propose(state, torch.tensor([1, 1, 1]), noise_of(3))
    assert tree.tokens.tolist() == [[1, 4], [1, 7], [1, 7]]


def test_what_one_request_teaches_serves_the_next_decoder_too() -> None:
    sizes = {}
    for remember in (True, False):
        drafter = Recycling(TREE, remember)
        for attempt in range(2):
            state = begin(drafter, {0: [1]}, 1, torch.zeros(1, 1, VOCAB))
            tree = drafter.propose(state, torch.tensor([5]), noise_of(1))
            sizes[remember, attempt] = min(int(tree.sizes), 2)
            drafter.observe(state, tree, NO_VERDICT, TargetOutput(torch.randn(1, tree.max_nodes, VOCAB)))
    assert sizes == {(True, 0): 1, (True, 1): 2, (False, 0): 1, (False, 1): 1}


def test_a_slot_used_again_begins_empty_without_memory() -> None:
    drafter = Recycling(TREE, remember=False)
    state = begin(drafter, {0: [1], 1: [1]}, 2, torch.zeros(2, 1, VOCAB))
    drafter.start(state, [1], [[2]], TargetOutput(torch.zeros(1, 1, VOCAB)))
    assert (drafter.propose(state, torch.tensor([1, 1]), noise_of(2)).sizes > 1).tolist() == [True, False]


def test_another_vocabulary_gets_a_table_of_its_own() -> None:
    drafter = Recycling(chain(2))
    small = begin(drafter, {0: [1]}, 1, torch.zeros(1, 1, VOCAB))
    begin(drafter, {0: [1]}, 1, torch.zeros(1, 1, 40))
    assert drafter.propose(small, torch.tensor([1]), noise_of(1)).sizes.tolist() == [2]


def test_nothing_is_read_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `needs.on_device` promises: after `start` no step looks at a value."""
    drafter = Recycling(TREE)
    state = begin(drafter, {0: [1]}, 2, torch.zeros(1, 1, VOCAB))
    roots, noise = torch.tensor([1, -1]), noise_of(2)
    verdict = Verdict(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2), roots)
    own, common = state.own, state.common

    def refuse(*_: object) -> None:
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "__bool__", "__int__", "__index__", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    tree = drafter.propose(state, roots, noise)
    drafter.observe(state, tree, verdict, TargetOutput(torch.zeros(2, tree.max_nodes, VOCAB)))
    assert state.own is own
    assert state.common is common


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_text_is_the_models_own_and_drafts_pay(acceptance: str) -> None:
    model = make_model(dtype=torch.float64)
    ids, mask, _ = ragged_batch((9, 4, 1))
    drafter = registry.build("drafter", "recycling")
    out = specdec.generate(model, ids, mask, drafter=drafter, acceptance=acceptance, max_new_tokens=30, eos_token_id=[])
    assert out.sequences[:, ids.shape[1] :].tolist() == own_texts((9, 4, 1), 30)
    assert out.stats.mean_accepted_length_pooled > 1.1


def test_refuses() -> None:
    with pytest.raises(ValueError, match="give tree=chain or tree=static"):
        Recycling(BestFirst())
    with pytest.raises(ValueError, match="the tree drafts 3 children a node; the target has 2 tokens"):
        begin(Recycling(TREE), {0: [1]}, 1, torch.zeros(1, 1, 2))
