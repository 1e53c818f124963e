"""The suffix automaton against a search that reads everything; what is drafted from it; what is kept of past texts."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import specdec
from specdec.drafters import suffix
from specdec.drafters.suffix import Automaton, Suffix, _before
from specdec.sampling import SamplingParams
from specdec.tree.token_tree import TokenTree

from ..fakes import Harness
from ..models import make_model, plain_text

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=18), min_size=1, max_size=4)


def occurrences(texts: list[list[int]], part: list[int]) -> list[tuple[int, int]]:
    """(text, end) of every place where `part` occurs."""
    n = len(part)
    return [(i, e) for i, text in enumerate(texts) for e in range(n, len(text) + 1) if text[e - n : e] == part]


def build(texts: list[list[int]]) -> tuple[Automaton, list[int]]:
    automaton, ends = Automaton(), []
    for text in texts:
        state = 0
        for token in text:
            state = automaton.extend(state, token)
        ends.append(state)
    return automaton, ends


def state_of(automaton: Automaton, part: list[int]) -> int | None:
    state = 0
    for token in part:
        if token not in automaton.following[state]:
            return None
        state = automaton.following[state][token]
    return state


@given(TEXTS)
def test_the_automaton_knows_every_substring_and_how_often_it_occurred(texts: list[list[int]]) -> None:
    automaton, _ = build(texts)
    order = {(i, e + 1): n for n, (i, e) in enumerate(((i, e) for i, t in enumerate(texts) for e in range(len(t))), 1)}
    for n in range(1, 6):
        for part in itertools.product(range(3), repeat=n):
            found, state = occurrences(texts, list(part)), state_of(automaton, list(part))
            assert (state is None) == (not found)
            if state is not None:
                assert automaton.counts[state] == len(found)
                assert automaton.latest[state] == max(order[place] for place in found)
    assert len(automaton.links) <= 2 * automaton.size + 1
    assert automaton.size == sum(map(len, texts))


@given(TEXTS)
def test_the_longest_suffix_that_occurs_elsewhere(texts: list[list[int]]) -> None:
    automaton, ends = build(texts)
    for i, (text, end) in enumerate(zip(texts, ends, strict=True)):
        if len(occurrences(texts, text)) == 1:  # else it is known whole, and what is known of it is a shorter one
            suffixes = (text[len(text) - n :] for n in range(1, len(text)))
            elsewhere = [len(part) for part in suffixes if set(occurrences(texts, part)) != {(i, len(text))}]
            assert _before(automaton, end).length == max(elsewhere, default=0)


@given(TEXTS, st.lists(st.integers(0, 3), max_size=12))
def test_find_is_a_naive_search(texts: list[list[int]], query: list[int]) -> None:
    automaton, _ = build(texts)
    state, length = automaton.find(query)
    assert length == max(n for n in range(len(query) + 1) if not n or occurrences(texts, query[len(query) - n :]))
    assert state == state_of(automaton, query[len(query) - length :])


def test_a_token_costs_the_same_in_a_long_text() -> None:
    """States and transitions made by 1000 tokens, after 1000 and after 20,000: amortised O(1), worst texts too."""
    rng = random.Random(0)
    for text in ([0] * 21_000, [0, 1] * 10_500, [rng.randrange(3) for _ in range(21_000)], [0] * 20_500 + [1] * 500):
        automaton, state, states = Automaton(), 0, []
        for token in text:
            state = automaton.extend(state, token)
            states.append(len(automaton.links))
        early, late = states[2000] - states[1000], states[-1] - states[-1001]
        assert late <= early + 1000
        assert states[-1] <= 2 * len(text)
        assert sum(map(len, automaton.following)) <= 3 * len(text)


# --- drafts


def text_of(drafter: Suffix, tokens: list[int], new: int = 1) -> suffix.Text:
    text = drafter.read([tokens[:-new]], 1000)[0]
    drafter.append(text, tokens[-new:])
    return text


def drafted(drafter: Suffix, tokens: list[int], new: int = 1) -> list[list[int]]:
    return TokenTree.from_lists([drafter.draft(text_of(drafter, tokens, new), 100)]).paths(0)


def test_the_longest_match_first_then_shorter_ones() -> None:
    tokens = [1, 2, 3, 7, 8, 3, 6, 4, 3, 6, 5, 1, 2, 3]
    assert drafted(Suffix(max_nodes=3, remember=0), tokens) == [[3, 7, 8]]
    assert [3, 6] in [path[:2] for path in drafted(Suffix(max_nodes=9, remember=0), tokens)]


def test_the_more_frequent_continuation_wins_and_the_latest_of_equals() -> None:
    drafter = Suffix(max_nodes=2, remember=0)
    assert drafted(drafter, [1, 5, 1, 6, 1, 5, 1, 7, 1]) == [[1, 5]]
    assert drafted(drafter, [1, 5, 1, 6, 1]) == [[1, 6]]


def test_a_longer_match_gets_a_larger_tree() -> None:
    def size(match: int) -> int:
        repeated = list(range(10, 10 + match))
        tokens = [*repeated, *range(50, 70), 1, *repeated]
        return len(drafted(Suffix(max_nodes=99, nodes_per_match=2, remember=0), tokens)[0]) - 1

    assert [size(n) for n in (1, 3, 6)] == [2, 6, 12]
    assert drafted(Suffix(remember=0), [1, 2, 3]) == [[3]]


def test_unlikely_continuations_are_left_out() -> None:
    tokens = [1, 5, 1, 6, 1, 5, 1, 5, 1, 5, 1]
    assert sum(p[1] == 6 for p in drafted(Suffix(max_nodes=40, min_probability=0.0, remember=0), tokens)) == 1
    assert all(p[1] == 5 for p in drafted(Suffix(max_nodes=40, min_probability=0.4, remember=0), tokens))


def test_what_was_written_before_is_drafted_again_here_and_elsewhere() -> None:
    drafter = Suffix(max_nodes=6)
    text_of(drafter, [9, 1, 2, 3, 4, 5, 6], new=5)
    assert drafted(drafter, [8, 2, 3]) == [[3, 4, 5, 6]]
    assert drafted(drafter, [7, 9, 1]) == [[1, 2, 3, 4, 5, 6]]  # the prompt's end is kept, to find a text's first token
    forgetful = Suffix(max_nodes=6, remember=0)
    text_of(forgetful, [9, 1, 2, 3, 4, 5, 6], new=5)
    assert drafted(forgetful, [8, 2, 3]) == [[3]]


def test_prompts_are_not_shared() -> None:
    drafter = Suffix()
    text_of(drafter, [*range(50), 60, 61])
    assert drafted(drafter, [70, 3, 4]) == [[4]]


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    drafter = Suffix(remember=400)
    rng = random.Random(0)
    first = text_of(drafter, [rng.randrange(1000) for _ in range(60)], new=50)
    for _ in range(20):
        text_of(drafter, [rng.randrange(1000) for _ in range(60)], new=50)
        history = drafter.history
        assert history is not None
        assert history.young.size + history.old.size <= 2 * (200 + suffix.SEED + 1)
        assert len(history.young.links) <= 2 * history.young.size + 1
    assert drafted(drafter, [5000, *first.last[:5]]) == [[first.last[4]]]
    newest = text_of(drafter, [rng.randrange(1000) for _ in range(60)], new=50)
    assert drafted(drafter, [5000, *newest.last[:5]])[0][:3] == newest.last[4:7]


def test_a_text_goes_on_across_the_halves_of_the_history() -> None:
    """One long text in a small history: what it wrote lately is found by another one in either half."""
    drafter = Suffix(remember=100)
    tokens = list(range(100, 400))
    for n in range(40, 300, 7):
        drafter = Suffix(remember=100)
        text_of(drafter, tokens[:n], new=n - 5)
        assert drafted(drafter, [5000, *tokens[n - 20 : n - 15]])[0][1:4] == tokens[n - 15 : n - 12]


def test_accepted_tokens_are_read_and_rejected_ones_are_not() -> None:
    drafter = Suffix(remember=0)
    harness = Harness(drafter, 2, 4, SamplingParams(), True)
    harness.enter([0, 1], [[1, 2, 1, 2, 1], [3, 3, 3]])
    for _ in range(8):
        harness.step()
        for slot, tokens in harness.texts.items():
            fresh = text_of(drafter, [*tokens, int(harness.roots[slot])])
            assert harness.state.texts[slot].own.following == fresh.own.following
            assert harness.state.texts[slot].last[-4:] == fresh.last[-4:]


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_text_is_the_models_own_when_requests_come_and_go(acceptance: str) -> None:
    """More requests than slots, ends by eos and by length, and again with what was learnt from the first time."""
    model = make_model(dtype=torch.float64)
    prompts = [[5, 6, 7, 5, 6], [11], [2, 3, 2, 3, 2], [5, 6, 7, 5, 6]]
    wanted = [plain_text(model, p, n) for p, n in zip(prompts, (24, 1, 17, 24), strict=True)]
    stop = wanted[2][9]
    wanted = [t[: t.index(stop) + 1] if stop in t else t for t in wanted]
    requests = [
        specdec.request.Request(p, n, eos=frozenset({stop})) for p, n in zip(prompts, (24, 1, 17, 24), strict=True)
    ]
    engine = specdec.engine.Engine(model, "suffix", None, acceptance)
    steps = []
    for _ in range(2):
        texts: list[list[int]] = [[] for _ in prompts]
        stats = specdec.DecodingStats()
        for generation, tokens in engine.run(requests, stats, slots=2):
            texts[generation.index] += tokens
        assert texts == wanted
        steps.append(stats.steps)
    assert steps[1] < steps[0]


@pytest.mark.parametrize(
    "settings", [{"max_nodes": 1}, {"nodes_per_match": 0}, {"min_probability": 1.5}, {"remember": -1}]
)
def test_refuses(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="suffix needs max_nodes >= 2"):
        Suffix(**settings)  # type: ignore[arg-type]
