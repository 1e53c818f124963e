"""grow() against a naive level-by-level search over Python tuples, for fixed and best-first shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specdec.core import TreePolicy
from specdec.tree.best_first import BestFirst
from specdec.tree.grow import Frontier, Grown, count_expanded, grow
from specdec.tree.static import StaticTree, chain

from ..fakes import check_shape, climb

VOCAB = 4
Text = tuple[int, ...]


def log_probs(slot: int, text: Text) -> Tensor:
    """A draft model: a fixed random distribution for every text of every slot. `[V]` float64."""
    seed = hash((slot, *text)) % 2**31
    return (
        torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(1.5).log_softmax(-1)
    )


@dataclass
class TopK:
    """DraftNoise that takes the most likely tokens, and says it drew them if the policy's shape is fixed."""

    paths_seen: list[list[list[Text]]] = field(default_factory=list)
    reads_paths: bool = True

    def choose(
        self, logits: Tensor, depth: int, count: int, path: Tensor, fixed: bool = False, replacement: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        assert path.shape == (*logits.shape[:2], depth)
        self.paths_seen.append([[tuple(p) for p in row] for row in path.tolist()])
        values, tokens = logits.topk(count, dim=-1)
        return tokens, values, None if fixed else logits.exp()


@dataclass
class Recorder:
    """The drafter's side of grow(): remembers every frontier."""

    frontiers: list[Frontier] = field(default_factory=list)

    def __call__(self, frontier: Frontier) -> Tensor:
        assert torch.equal(frontier.path[..., -1], frontier.tokens)
        if self.frontiers:
            before = self.frontiers[-1].path
            for b, row in enumerate(frontier.parents.tolist()):
                for f, parent in enumerate(row):
                    assert torch.equal(before[b, parent], frontier.path[b, f, :-1])
        else:
            assert (frontier.parents == 0).all()
        self.frontiers.append(frontier)
        rows = [[log_probs(b, tuple(p)) for p in row] for b, row in enumerate(frontier.path.tolist())]
        return torch.stack([torch.stack(row) for row in rows])

    def expanded(self, slot: int) -> list[Text]:
        """Texts in the order in which they were expanded."""
        return [tuple(p) for frontier in self.frontiers for p in frontier.path[slot].tolist()]


def grow_batch(policy: TreePolicy, roots: list[int]) -> tuple[Grown, Recorder, TopK]:
    recorder, noise = Recorder(), TopK()
    start = torch.stack([log_probs(b, ()) for b in range(len(roots))])
    as_noise: Any = noise
    return grow(policy, torch.tensor(roots), start, recorder, as_noise), recorder, noise


def children(slot: int, text: Text, count: int) -> list[tuple[float, Text]]:
    """The best children of a text with their own log-probabilities, best first."""
    values, tokens = log_probs(slot, text).topk(count)
    return [(v, (*text, t)) for v, t in zip(values.tolist(), tokens.tolist(), strict=True)]


def naive_static(paths: list[list[int]], slot: int) -> set[Text]:
    texts: dict[Text, Text] = {(): ()}
    for ranks in sorted(map(tuple, paths), key=len):
        texts[ranks] = children(slot, texts[ranks[:-1]], VOCAB)[ranks[-1]][1]
    return set(texts.values())


def naive_best_first(policy: BestFirst, slot: int) -> set[Text]:
    frontier: list[tuple[float, Text]] = [(0.0, ())]
    found: list[tuple[float, Text]] = []
    for _ in range(policy.depth):
        level = [(s + v, t) for s, text in frontier for v, t in children(slot, text, policy.top_k)]
        found += level
        frontier = sorted(level, reverse=True)[: policy.width or policy.top_k]
    return {()} | {t for _, t in sorted(found, reverse=True)[: policy.max_nodes - 1]}


def check(policy: TreePolicy, naive: Callable[[int], set[Text]], roots: list[int]) -> None:
    grown, recorder, noise = grow_batch(policy, roots)
    tree = grown.tree
    check_shape(tree)
    assert tree.max_nodes <= policy.max_nodes
    for b, root in enumerate(roots):
        if root < 0:
            assert int(tree.sizes[b]) == 0
            continue
        assert int(tree.sizes[b]) == tree.max_nodes
        tokens, parents = tree.tokens[b].tolist(), tree.parents[b].tolist()
        texts: list[Text] = [tuple(tokens[i] for i in reversed(climb(parents, j)[:-1])) for j in range(len(tokens))]
        assert tokens[0] == root
        assert len(set(texts)) == len(texts)
        assert set(texts) == naive(b)
        order = recorder.expanded(b)
        for j, number in enumerate(grown.expanded[b].tolist()):
            if number >= 0:
                assert order[number] == texts[j]
            else:
                assert j == 0 or j not in parents, "a node with children was expanded"
        assert (tree.draft_probs is None) == (not policy.fixed_shape)
        if tree.draft_probs is not None:
            for j, text in enumerate(texts):
                wanted = log_probs(b, text).exp() if j in parents else torch.zeros(VOCAB, dtype=torch.float64)
                assert torch.equal(tree.draft_probs[b, j], wanted)
                below = [tokens[i] for i in range(len(tokens)) if parents[i] == j]
                assert below == [t[-1] for _, t in children(b, text, len(below))] if below else True
    assert noise.paths_seen[0] == [[()]] * len(roots)
    assert sum(len(f.tokens[0]) for f in recorder.frontiers) <= count_expanded(policy)


@st.composite
def rank_paths(draw: st.DrawFn) -> list[list[int]]:
    """A random list of ranks paths without gaps."""
    nodes: list[tuple[int, ...]] = [()]
    for _ in range(draw(st.integers(1, 8))):
        parent = draw(st.sampled_from([n for n in nodes if len(n) < 4]))
        rank = sum(1 for n in nodes if n[:-1] == parent and n)
        if rank < VOCAB:
            nodes.append((*parent, rank))
    return [list(n) for n in nodes[1:]]


@given(rank_paths(), st.lists(st.integers(-1, VOCAB - 1), min_size=1, max_size=3))
def test_static(paths: list[list[int]], roots: list[int]) -> None:
    policy = StaticTree(paths)
    check(policy, lambda slot: naive_static(paths, slot), roots)
    assert policy.max_nodes == len(paths) + 1


@given(
    st.builds(
        BestFirst,
        max_nodes=st.integers(2, 12),
        depth=st.integers(1, 4),
        top_k=st.integers(1, VOCAB),
        width=st.none() | st.integers(1, 6),
    ),
    st.lists(st.integers(-1, VOCAB - 1), min_size=1, max_size=3),
)
def test_best_first(policy: BestFirst, roots: list[int]) -> None:
    check(policy, lambda slot: naive_best_first(policy, slot), roots)


@pytest.mark.parametrize("max_nodes", [2, 3, 8, 20, 85])
def test_best_first_finds_the_most_likely_nodes_there_are(max_nodes: int) -> None:
    """With nothing cut off on the way, what is kept are the most likely of all texts of up to 3 tokens."""
    policy = BestFirst(max_nodes=max_nodes, depth=3, top_k=VOCAB, width=VOCAB**3)
    grown, _, _ = grow_batch(policy, [1, 2])
    for b in range(2):
        scores: dict[Text, float] = {}
        for length in (1, 2, 3):
            for text in itertools.product(range(VOCAB), repeat=length):
                scores[text] = sum(float(log_probs(b, text[:n])[text[n]]) for n in range(length))
        wanted = {()} | set(sorted(scores, key=scores.__getitem__, reverse=True)[: max_nodes - 1])
        parents = grown.tree.parents[b].tolist()
        tokens = grown.tree.tokens[b].tolist()
        assert {tuple(tokens[i] for i in reversed(climb(parents, j)[:-1])) for j in range(len(tokens))} == wanted


@given(st.integers(2, 10), st.lists(st.floats(-4, 0), min_size=9, max_size=9))
def test_prune_keeps_parents_of_what_it_keeps(max_nodes: int, gains: list[float]) -> None:
    """Also where a child is exactly as likely as its parent (gains of 0)."""
    parents = [-1, -1, 0, 0, 1, 2, 4, 4, 6]  # below the root, as indices into the scores
    scores: list[float] = []
    for parent, gain in zip(parents, gains, strict=True):
        scores.append(round(gain) + (scores[parent] if parent >= 0 else 0.0))
    keep = BestFirst(max_nodes=max_nodes).prune(torch.tensor([scores]))
    kept = list(range(9)) if keep is None else keep[0].tolist()
    assert kept == sorted(kept)
    assert len(kept) == min(max_nodes - 1, 9)
    assert all(parents[i] in kept or parents[i] == -1 for i in kept)
    assert sorted(scores[i] for i in kept) == sorted(scores)[-len(kept) :]


@pytest.mark.parametrize(
    ("policy", "count"),
    [
        (chain(1), 0),
        (chain(4), 3),
        (StaticTree([[0], [1], [0, 0], [0, 1], [0, 0, 0]]), 2),
        (BestFirst(max_nodes=2, depth=10, top_k=8), 72),
        (BestFirst(max_nodes=4, depth=5, top_k=2, width=20), 2 + 4 + 8 + 16),
    ],
)
def test_expanded_nodes_are_counted_before_they_are_pruned(policy: TreePolicy, count: int) -> None:
    assert count_expanded(policy) == count
