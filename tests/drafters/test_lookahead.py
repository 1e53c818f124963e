"""Lookahead decoding against plain Python: lists for the window and the pool, one token and one n-gram at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import specdec
from specdec.acceptance.coupled import Coupled
from specdec.core import TargetOutput, Verdict
from specdec.decode import decode
from specdec.drafters.lookahead import RECENT, Lookahead, window_parents
from specdec.drafters.none import NoDrafter
from specdec.metrics import DecodingStats
from specdec.request import Request
from specdec.sampling import DraftNoise, Sampler, SamplingParams
from specdec.step import Step
from specdec.target import Target
from specdec.tree.token_tree import TokenTree, merge_paths
from specdec.tree.union import token_keys

from ..fakes import CPU, Harness, check_shape
from ..models import make_model, own_texts, ragged_batch

VOCAB = 7  # so few that n-grams are met again
SETTINGS = [(5, 4, 3, 4096), (1, 3, 1, 9), (4, 3, 9, 11), (2, 5, 2, 4)]  # window, ngram, guesses, pool


class Naive:
    """One slot. The pool is a list, the oldest first; what was taken out of its place leaves None."""

    def __init__(self, drafter: Lookahead, prompt: list[int]):
        self.drafter, self.text = drafter, list(prompt)
        self.pool: list[tuple[int, ...] | None] = []
        self.recent = [prompt[-RECENT:][i % len(prompt[-RECENT:])] for i in range(RECENT)]
        self.count = len(prompt[-RECENT:])
        size = drafter.ngram
        for end in range(size, len(prompt) + 1):
            gram = tuple(prompt[end - size : end])
            self.pool = [g for g in self.pool if g != gram] + [gram]
        self.pool = self.pool[-drafter.pool :]
        self.columns = [self.piece(j) for j in range(drafter.window)]  # column -> its levels

    def piece(self, column: int) -> list[int]:
        start = int(token_keys(torch.tensor(self.count), torch.tensor(column))) >> 8
        return [self.recent[(start + level) % RECENT] for level in range(self.drafter.ngram - 1)]

    def guesses(self, root: int) -> list[list[int]]:
        newest = [g for g in reversed(self.pool) if g is not None and g[0] == root]
        return [list(g[1:]) for g in newest[: self.drafter.guesses]]

    def path(self, level: int, column: int) -> list[int]:
        """Tokens below the root down to an entry: along level 0, then down its column."""
        chain = [self.columns[j][0] for j in range(1, column + 1)]
        return chain + self.columns[column][1 : level + 1]

    def step(self, harness: Harness, root: int, new_tokens: list[int]) -> None:
        size, window = self.drafter.ngram, self.drafter.window
        made = [harness.guess([*self.text, root, *self.path(size - 2, j)]) for j in range(window)]
        self.columns[0][0] = root
        columns = [[*levels, token] for levels, token in zip(self.columns, made, strict=True)]
        for levels in reversed(columns):
            gram = tuple(levels)
            self.pool = [None if g == gram else g for g in self.pool] + [gram]
        self.pool = self.pool[-self.drafter.pool :]
        self.text += [root, *new_tokens[:-1]]
        for token in new_tokens:
            self.recent[self.count % RECENT] = token
            self.count += 1
        shift = len(new_tokens) - 1
        self.columns = [columns[j + shift][1:] if j + shift < window else self.piece(j) for j in range(window)]


def check(drafter: Lookahead, harness: Harness, slots: dict[int, Naive]) -> None:
    """One step of both."""
    roots = harness.roots.tolist()
    tree = harness.step()
    check_shape(tree)
    assert tree.riders is not None
    for slot, naive in slots.items():
        root, size = roots[slot], int(tree.sizes[slot])
        expected = merge_paths(root, naive.guesses(root), drafter.needs.max_nodes)
        assert (tree.tokens[slot, :size].tolist(), tree.parents[slot, :size].tolist()) == expected
        rows = tree.rows.paths(slot)
        for column in range(drafter.window):
            assert [root, *naive.path(drafter.ngram - 2, column)] in rows
        entries = [[levels[i] for levels in naive.columns] for i in range(drafter.ngram - 1)]
        assert tree.riders.tokens[slot].tolist() == [t for level in entries for t in level][1:]
        emitted = [*harness.texts[slot][len(naive.text) + 1 :], int(harness.roots[slot])]
        naive.step(harness, root, emitted)
    assert tree.sizes.tolist() == [int(tree.sizes[s]) if s in slots else 0 for s in range(len(roots))]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("slots", [1, 4])
def test_as_lists_would(settings: tuple[int, int, int, int], slots: int) -> None:
    """Requests enter and leave; prompts shorter than an n-gram, longer than the pool, and with repeats."""
    drafter = Lookahead(*settings)
    harness = Harness(drafter, slots, VOCAB, SamplingParams(), True)
    rng, known = random.Random(0), dict[int, Naive]()
    for number in range(14):
        for slot in range(slots):
            if slot in known and rng.random() < 0.1:
                harness.leave(slot)
                del known[slot]
            if slot not in known and rng.random() < 0.6:
                prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 4, 30, RECENT + 9]))]
                harness.enter([slot], [prompt])
                known[slot] = Naive(drafter, prompt)
        harness.acceptance = 1.0 if number == 5 else 0.7
        check(drafter, harness, known)


@pytest.mark.parametrize(("window", "levels"), [(1, 2), (1, 4), (3, 2), (5, 4)])
def test_a_window_hangs_below_the_root(window: int, levels: int) -> None:
    """Entry (i, j) sees level 0 up to column j and its column down to itself: it stands i + j behind the root."""
    above = window_parents(window, levels)
    entries = {(i, j): i * window + j - 1 for i in range(levels) for j in range(window)}
    assert len(above) == window * levels - 1
    for (i, j), rider in entries.items():
        if rider >= 0:
            wanted = [(0, k) for k in range(1, j + 1)] + [(k, j) for k in range(1, i + 1)]
            path = []
            while rider >= 0:
                path.append(rider)
                rider = above[rider]
            assert path[::-1] == [entries[entry] for entry in wanted]


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.9, top_p=0.9, seed=7)], ids=str)
def test_the_text_is_that_of_plain_decoding(slots: int, sampling: SamplingParams) -> None:
    """Coupled, same seed: token for token, in any batch and up to the last position; and drafts pay."""
    target = Target(make_model(dtype=torch.float64, vocab_size=24))
    prompts = [[5, 6, 7, 5, 6], [11], [2, 3, 2, 3, 2, 3, 2], [9, 8], [4] * 12]
    requests = [Request(p, n, sampling) for p, n in zip(prompts, [30, 20, 121, 1, 12], strict=True)]
    texts = []
    stats = DecodingStats()
    for drafter in (NoDrafter(), Lookahead(6, 3, 6)):
        step = Step(target, drafter, Coupled(), slots, 128)
        texts.append({g.index: g.new_ids for g, _ in decode(step, requests, stats) if g.finished})
        stats = DecodingStats() if not isinstance(drafter, Lookahead) else stats
    assert texts[0] == texts[1]
    assert stats.mean_accepted_length_pooled > 1.02


@pytest.mark.parametrize("acceptance", ["coupled", "rejection", "block", "traversal"])
def test_with_every_lossless_rule(acceptance: str) -> None:
    model = make_model(dtype=torch.float64)
    ids, mask, _ = ragged_batch((9, 4, 1))
    out = specdec.generate(
        model, ids, mask, drafter="lookahead", acceptance=acceptance, max_new_tokens=30, eos_token_id=[]
    )
    assert out.sequences[:, ids.shape[1] :].tolist() == own_texts((9, 4, 1), 30)


def test_nothing_is_read_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `needs.on_device` promises: after `start` no step looks at a value, and the state's tensors stay."""
    drafter = Lookahead(4, 4, 3, pool=20)
    state: Any = drafter.open(2, 50, CPU)
    drafter.start(state, [0], [[1, 2, 3, 1, 2]], TargetOutput(torch.zeros(1, 1, VOCAB)))
    noise: DraftNoise = Sampler(2, VOCAB, CPU).at(torch.zeros(2, dtype=torch.int64), 9, []).draft_noise(True)
    roots = torch.tensor([1, -1])
    verdict = Verdict(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([1, 0]), roots)
    before = {name: getattr(state, name) for name in state.__slots__}

    def refuse(*_: object) -> None:
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "__bool__", "__int__", "__index__", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    tree: TokenTree = drafter.propose(state, roots, noise)
    logits = torch.zeros(2, tree.max_nodes, VOCAB)
    drafter.observe(state, tree, verdict, TargetOutput(logits, riders=torch.zeros(2, 11, VOCAB)))
    assert all(getattr(state, name) is x for name, x in before.items())


@pytest.mark.parametrize("wrong", [{"window": 0}, {"ngram": 2}, {"guesses": 0}, {"pool": 14}])
def test_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needs window >= 1, ngram >= 3, guesses >= 1 and a pool of at least window"):
        Lookahead(**wrong)
