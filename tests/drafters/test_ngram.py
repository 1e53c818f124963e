"""Prompt lookup against a search that reads the whole text, and its cost per step."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from specdec.core import TargetOutput, Verdict
from specdec.drafters.ngram import DeviceTexts, HostTexts, NGram, Text
from specdec.sampling import SamplingParams
from specdec.tree.token_tree import TokenTree

from ..fakes import Harness, check_shape


def naive_continuations(text: list[int], max_ngram: int, min_ngram: int, length: int, keep: int) -> list[list[int]]:
    """What followed the last n tokens elsewhere: the longest n first, the latest place first, no place twice."""
    starts: list[int] = []
    for n in range(max_ngram, min_ngram - 1, -1):
        for start in range(len(text) - 1, n - 1, -1):
            if n < len(text) and text[start - n : start] == text[len(text) - n :] and start not in starts:
                starts.append(start)
    return [text[s : s + length] for s in starts[:keep]]


def index(tokens: list[int], max_ngram: int, keep: int) -> Text:
    text = Text(max_ngram, keep)
    for token in tokens:
        text.append(token)
    return text


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_as_a_naive_search(tokens: list[int], most: int, least: int, length: int, keep: int) -> None:
    most, least = max(most, least), min(most, least)
    found = index(tokens, most, keep).continuations(least, length)
    assert found == naive_continuations(tokens, most, least, length, keep)


def test_longest_suffix_first_then_latest() -> None:
    text = index([1, 2, 3, 7, 2, 3, 8, 9, 3, 6, 1, 2, 3], max_ngram=3, keep=9)
    assert text.continuations(1, 1) == [[7], [8], [6]]
    assert text.continuations(2, 2) == [[7, 2], [8, 9]]
    assert index([5, 4, 5, 3, 5], max_ngram=3, keep=1).continuations(1, 9) == [[3, 5]]
    assert index([1, 2, 3], max_ngram=3, keep=2).continuations(1, 5) == []
    assert index([], max_ngram=3, keep=2).continuations(1, 5) == []


def test_continuations_are_merged_into_a_tree() -> None:
    harness = Harness(NGram(max_ngram=2, length=3, continuations=2, max_nodes=5), 1, 10, SamplingParams(), True)
    harness.enter([0], [[1, 2, 3, 4, 1, 2, 3, 5, 1]])
    harness.roots[0] = 2
    tree = harness.step()
    assert tree.paths(0) == [[2, 3, 5, 1], [2, 3, 4]]  # the latest has its nodes first, and there are five
    assert int(tree.sizes) == 5


def test_accepted_tokens_are_indexed_and_rejected_ones_are_not() -> None:
    """The index holds the text and nothing else: the same as one made from the text at once."""
    drafter = NGram()
    harness = Harness(drafter, 2, 4, SamplingParams(), True)
    harness.enter([0, 1], [[1, 2, 1, 2, 1], [3, 3, 3]])
    for _ in range(8):
        harness.step()
        for slot, tokens in harness.texts.items():
            fresh = index(tokens, drafter.max_ngram, drafter.continuations)
            assert harness.state.texts[slot]._tokens == tokens
            assert harness.state.texts[slot]._index == fresh._index


class OnDevice(NGram):
    """What runs on a GPU, here."""

    def open(self, capacity: int, max_length: int, device: torch.device) -> DeviceTexts:
        return DeviceTexts(self, capacity, max_length, device)


def nodes(tree: TokenTree, slot: int) -> tuple[list[int], list[int]]:
    """Tokens and parents without padding: node for node what a tree is."""
    size = int(tree.sizes[slot])
    return tree.tokens[slot, :size].tolist(), tree.parents[slot, :size].tolist()


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=3, max_size=3),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(2, 20)),
)
@settings(max_examples=30)
def test_host_and_device_propose_the_same(prompts: list[list[int]], numbers: tuple[int, ...]) -> None:
    """Through steps in which a request leaves and another takes its slot."""
    most, least, length, continuations, max_nodes = numbers
    chosen = max(most, least), min(most, least), length, continuations, max_nodes
    host, device = (Harness(kind(*chosen), 3, 3, SamplingParams(), True, 80) for kind in (NGram, OnDevice))
    for number in range(5):
        for harness in (host, device):
            if number == 0:
                harness.enter([0, 2], prompts[:2])
            elif number == 2:
                harness.leave(2)
            elif number == 3:
                harness.enter([2], prompts[2:])
        trees = host.step(), device.step()
        check_shape(trees[1])
        for slot in range(3):
            assert nodes(trees[0], slot) == nodes(trees[1], slot)
    assert host.texts == device.texts
    for slot, text in device.texts.items():
        assert device.state.tokens[slot, : int(device.state.lengths[slot])].tolist() == text


def test_an_ended_text_stops_at_the_end_of_its_buffer() -> None:
    """The host may read a step late, and let an ended request run on: its neighbours do not notice."""
    drafter = OnDevice(length=8)
    state = drafter.open(2, 10, torch.device("cpu"))
    drafter.start(state, [0, 1], [[1, 2] * 5, [3, 4]], TargetOutput(torch.empty(2, 1, 5)))
    for _ in range(3):
        tree = drafter.propose(state, torch.tensor([1, -1]), None)  # type: ignore[arg-type]
        path = torch.tensor([[0, 1, 2, 3], [-1, -1, -1, -1]])
        verdict = Verdict(path, torch.tensor([4, 0]), torch.tensor([1, 0]))
        drafter.observe(state, tree, verdict, TargetOutput(torch.empty(2, 1, 5)))
    assert state.lengths.tolist() == [10, 2]
    assert state.tokens[0, :10].tolist() == [1, 2] * 5
    assert state.tokens[1, :2].tolist() == [3, 4]


def test_texts_lie_on_the_device_if_that_is_a_gpu() -> None:
    with FakeTensorMode():  # which has every device
        assert isinstance(NGram().open(1, 9, torch.device("cuda")), DeviceTexts)
        assert isinstance(NGram().open(1, 9, torch.device("cpu")), HostTexts)


def test_cost_of_a_step_does_not_grow() -> None:
    """n-grams touched by one lookup and one append, after 100 and after 5000 tokens; places kept for each."""
    costs = []
    for size in (100, 5000):
        text = index(list(itertools.islice(itertools.cycle([1, 2, 3, 1, 2, 4]), size)), 3, 2)

        class CountingDict(dict):
            touched = 0

            def get(self, *args: Any) -> Any:
                CountingDict.touched += 1
                return super().get(*args)

        text._index = CountingDict(text._index)
        text.continuations(1, 8)
        text.append(1)
        costs.append(CountingDict.touched)
        assert max(map(len, text._index.values())) == 2
    assert costs[0] == costs[1]
    assert costs[0] <= 3 + 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_ngram": 0}, "ngram needs 1 <= min_ngram <= max_ngram; got 0 and 3"),
        ({"min_ngram": 4}, "ngram needs 1 <= min_ngram <= max_ngram; got 4 and 3"),
        ({"length": 0}, "ngram needs length >= 1"),
        ({"continuations": 0}, "ngram needs length >= 1"),
        ({"max_nodes": 1}, "ngram needs length >= 1"),
    ],
)
def test_refuses(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NGram(**settings)


def test_roots_of_any_dtype_on_cpu() -> None:
    harness = Harness(NGram(), 1, 10, SamplingParams(), True)
    harness.enter([0], [[1, 2, 1]])
    assert harness.step().tokens.dtype == torch.int64
