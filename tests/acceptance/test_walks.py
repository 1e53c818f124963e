"""Both ways in which `coupled` walks, and the verdicts of both rules, against a walk in plain Python."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from specdec.acceptance.coupled import Coupled, walk
from specdec.acceptance.rejection import Rejection
from specdec.core import AcceptanceRule, Verdict
from specdec.kernels.accept import accept
from specdec.sampling import Sampler, SamplingParams, StepSampling
from specdec.tree.token_tree import TokenTree, merge_paths

from ..fakes import naive_walk

VOCAB = 5
CPU = torch.device("cpu")
SAMPLED = [
    SamplingParams(),
    SamplingParams(temperature=0.7, seed=1),
    SamplingParams(temperature=1.3, top_k=3, seed=2),
    SamplingParams(repetition_penalty=1.4),
]


@st.composite
def batches(draw: st.DrawFn) -> TokenTree:
    """Random trees whose siblings differ, and empty slots."""
    trees = []
    for _ in range(draw(st.integers(1, 4))):
        paths = draw(st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=6), max_size=8))
        trees.append(merge_paths(draw(st.integers(-1, VOCAB - 1)), paths))
    return TokenTree.from_lists(trees)


def logits_for(tree: TokenTree, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tree.batch_size, tree.max_nodes, VOCAB, generator=generator) * 2


def step(params: list[SamplingParams], tree: TokenTree) -> StepSampling:
    sampler = Sampler(tree.batch_size, VOCAB, CPU)
    for slot in range(tree.batch_size):
        if tree.sizes[slot]:
            sampler.start(slot, params[slot % len(params)], [1, 2])
    return sampler.at(torch.arange(tree.batch_size) + 5, tree.max_nodes, list(range(tree.batch_size)))


def node_targets(tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Tensor:
    """`[B, N]`: the target's token at every node, drawn node by node."""
    targets = torch.zeros(tree.tokens.shape, dtype=torch.int64)
    for b in range(tree.batch_size):
        for j in range(int(tree.sizes[b])):
            depth = int(tree.depths[b, j])
            above = tree.ancestors[b, j].nonzero()[1:, 0]
            path = torch.zeros(tree.batch_size, depth, dtype=torch.int64)
            path[b] = tree.tokens[b, above]
            targets[b, j] = sampling.draw(logits[:, j], depth, path)[b]
    return targets


def check(verdict: Verdict, tree: TokenTree, targets: Tensor) -> None:
    for b in range(tree.batch_size):
        path, last = naive_walk(tree, b, targets[b].tolist())
        padded = path + [-1] * (verdict.path.shape[1] - len(path))
        assert verdict.path[b].tolist() == padded
        assert int(verdict.num_accepted[b]) == len(path)
        if path:
            assert int(verdict.next_token[b]) == last
            emitted = verdict.emitted(tree)[b, : len(path)].tolist()
            assert emitted == [int(tree.tokens[b, j]) for j in path[1:]] + [last]


@given(batches(), st.integers(0, 1000))
def test_greedy_by_kernel_and_by_walk(tree: TokenTree, seed: int) -> None:
    logits = logits_for(tree, seed)
    sampling = step([SamplingParams()], tree)
    assert sampling.raw
    targets = logits.argmax(-1)
    check(Coupled()(tree, logits, sampling), tree, targets)
    check(walk(tree, logits, sampling), tree, targets)
    check(Verdict(*accept(tree.tokens, tree.parents, tree.sizes, tree.words, targets)), tree, targets)


@given(batches(), st.integers(0, 1000), st.integers(0, 3))
def test_sampled_by_walk(tree: TokenTree, seed: int, first: int) -> None:
    logits = logits_for(tree, seed)
    sampling = step(SAMPLED[first:] + SAMPLED[:first], tree)
    targets = node_targets(tree, logits, sampling)
    check(Coupled()(tree, logits, sampling), tree, targets)
    check(Rejection()(tree, logits, sampling), tree, targets)


class AtOnce(StepSampling):
    """As on a GPU: kernels for all nodes, here their torch maths."""

    at_once = True


@given(batches(), st.integers(0, 1000), st.integers(0, 3))
def test_sampled_at_once(tree: TokenTree, seed: int, first: int) -> None:
    logits = logits_for(tree, seed)
    sampling = step(SAMPLED[first:] + SAMPLED[:first], tree)
    targets = node_targets(tree, logits, sampling)
    at_once = AtOnce(sampling._sampler, sampling.positions, tree.max_nodes, [])
    check(Coupled()(tree, logits, at_once), tree, targets)
    check(Rejection()(tree, logits, at_once), tree, targets)


@given(batches(), st.integers(0, 1000), st.integers(0, 3))
def test_rejection_at_once(tree: TokenTree, seed: int, first: int) -> None:
    """The kernel decides as the rule in torch does; its noise is the same."""
    logits = logits_for(tree, seed)
    draft_probs = logits_for(tree, seed + 1).softmax(-1)
    drawn = TokenTree(tree.tokens, tree.parents, tree.sizes, draft_probs)
    sampling = step(SAMPLED[first:] + SAMPLED[:first], tree)
    at_once = AtOnce(sampling._sampler, sampling.positions, tree.max_nodes, [])
    one, other = Rejection()(drawn, logits, sampling), Rejection()(drawn, logits, at_once)
    live = tree.sizes > 0
    assert torch.equal(one.path, other.path)
    assert torch.equal(one.num_accepted, other.num_accepted)
    assert torch.equal(one.next_token[live], other.next_token[live])


@given(batches(), st.integers(0, 1000))
def test_targets_that_follow_the_tree(tree: TokenTree, seed: int) -> None:
    """Long walks: at every node the target wants one of the children, if there is one."""
    logits = logits_for(tree, seed)
    for b in range(tree.batch_size):
        for j in range(1, int(tree.sizes[b])):
            logits[b, int(tree.parents[b, j]), tree.tokens[b, j]] += 20
    targets = logits.argmax(-1)
    check(Coupled()(tree, logits, step([SamplingParams()], tree)), tree, targets)
    sampling = step(SAMPLED[1:], tree)
    check(Coupled()(tree, logits, sampling), tree, node_targets(tree, logits, sampling))


@pytest.mark.parametrize("nodes", [63, 64, 65, 130])
def test_long_chains(nodes: int) -> None:
    tokens = torch.arange(3 * nodes).view(3, nodes) % VOCAB
    tokens[1, 0] = -1
    tree = TokenTree.chain(tokens)
    targets = torch.cat([tree.tokens[:, 1:], torch.full((3, 1), 2)], 1)
    targets[2, 40] = (targets[2, 40] + 1) % VOCAB
    logits = torch.nn.functional.one_hot(targets, VOCAB).float()
    check(Coupled()(tree, logits, step([SamplingParams()], tree)), tree, targets)
    check(walk(tree, logits, step([SamplingParams()], tree)), tree, targets)


@given(batches(), st.integers(0, 1000))
def test_siblings_with_the_same_token_lose_nothing(tree: TokenTree, seed: int) -> None:
    """Allowed, though useless: the text is the target's whichever of them is taken."""
    doubled = []
    for b in range(tree.batch_size):
        size = int(tree.sizes[b])
        tokens, parents = tree.tokens[b, :size].tolist(), tree.parents[b, :size].tolist()
        doubled.append((tokens + tokens[1:2], parents + parents[1:2]))
    twice = TokenTree.from_lists(doubled)
    logits = logits_for(twice, seed)
    verdict = Coupled()(twice, logits, step([SamplingParams()], twice))
    for b in range(twice.batch_size):
        path = [j for j in verdict.path[b].tolist() if j >= 0]
        assert len(path) == int(verdict.num_accepted[b])
        for node, child in itertools.pairwise(path):
            assert int(twice.parents[b, child]) == node
            assert int(twice.tokens[b, child]) == int(logits[b, node].argmax())
        if path:
            assert int(verdict.next_token[b]) == int(logits[b, path[-1]].argmax())


@given(batches(), st.integers(0, 1000))
def test_rejection_of_a_batch_is_that_of_its_rows(tree: TokenTree, seed: int) -> None:
    """With draft distributions: slots do not see each other."""
    probs = logits_for(tree, seed + 1).softmax(-1)
    drawn = TokenTree(tree.tokens, tree.parents, tree.sizes, probs)
    logits = logits_for(tree, seed)
    together = Rejection()(drawn, logits, step(SAMPLED, drawn))
    for b in range(tree.batch_size):
        sampler = Sampler(1, VOCAB, CPU)
        if tree.sizes[b]:
            sampler.start(0, SAMPLED[b % len(SAMPLED)], [1, 2])
        one = slice(b, b + 1)
        single = TokenTree(tree.tokens[one], tree.parents[one], tree.sizes[one], probs[one])
        alone = Rejection()(single, logits[one], sampler.at(torch.tensor([b + 5]), tree.max_nodes, [0]))
        assert torch.equal(alone.path[0], together.path[b])
        assert torch.equal(alone.num_accepted[0], together.num_accepted[b])
        if tree.sizes[b]:
            assert torch.equal(alone.next_token[0], together.next_token[b])


@pytest.mark.parametrize("rule", [Coupled(), Rejection()], ids=["coupled", "rejection"])
@pytest.mark.parametrize("processed", [False, True])
def test_empty_slots(rule: AcceptanceRule, processed: bool) -> None:
    """Nothing is accepted in them, and nothing of them is read."""

    class Nothing(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores

    tree = TokenTree.from_paths([-1, 3, -1], [[], [[1, 2]], []])
    sampler = Sampler(3, VOCAB, CPU)
    sampler.start(1, SamplingParams(temperature=1.0), [1], LogitsProcessorList([Nothing()] if processed else []))
    logits = torch.zeros(3, 3, VOCAB)
    logits[0] = torch.nan
    verdict = rule(tree, logits, sampler.at(torch.tensor([0, 4, 0]), 3, [1]))
    assert verdict.num_accepted.tolist()[::2] == [0, 0]
    assert (verdict.path[::2] == -1).all()
    assert int(verdict.num_accepted[1]) >= 1
