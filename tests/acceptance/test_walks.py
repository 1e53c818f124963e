"""Both ways in which `coupled` walks, and the verdicts of every rule, against a walk in plain Python; batches of ragged
trees, empty slots, settings that differ by request."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from specdec.acceptance.block import Block
from specdec.acceptance.coupled import Coupled, walk
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.relaxed import Relaxed
from specdec.acceptance.traversal import Traversal
from specdec.acceptance.typical import Typical
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


@st.composite
def chains(draw: st.DrawFn) -> TokenTree:
    """Random chains, and empty slots."""
    lists = [draw(st.lists(st.integers(0, VOCAB - 1), max_size=6)) for _ in range(draw(st.integers(1, 4)))]
    return TokenTree.from_lists([(tokens, list(range(-1, len(tokens) - 1))) for tokens in lists])


RULES: dict[str, tuple[AcceptanceRule, st.SearchStrategy[TokenTree]]] = {
    "rejection": (Rejection(), batches()),
    "block": (Block(), chains()),
    "traversal": (Traversal(), batches()),
    "typical": (Typical(epsilon=0.2), batches()),
    "relaxed": (Relaxed(top_k=3, ratio=0.2), batches()),
}


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
    for rule in (Coupled(), Rejection(), Block(), Traversal()):
        check(rule(tree, logits, sampling), tree, targets)


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


@pytest.mark.parametrize("name", RULES)
@given(data=st.data(), seed=st.integers(0, 1000), first=st.integers(0, 3), replacement=st.booleans())
def test_every_rule_at_once(name: str, data: st.DataObject, seed: int, first: int, replacement: bool) -> None:
    """What runs on a GPU, a kernel or torch that reads nothing, decides as the rule on a CPU; the noise is the same."""
    rule, trees = RULES[name]
    tree = data.draw(trees)
    logits = logits_for(tree, seed)
    draft_probs = logits_for(tree, seed + 1).softmax(-1)
    tokens = tree.tokens.clamp_max(1) if replacement else tree.tokens  # many equal siblings
    drawn = TokenTree(tokens, tree.parents, tree.sizes, draft_probs, replacement=replacement)
    sampling = step(SAMPLED[first:] + SAMPLED[:first], tree)
    at_once = AtOnce(sampling._sampler, sampling.positions, tree.max_nodes, [])
    one, other = rule(drawn, logits, sampling), rule(drawn, logits, at_once)
    live = tree.sizes > 0
    assert torch.equal(one.path, other.path)
    assert torch.equal(one.num_accepted, other.num_accepted)
    assert torch.equal(one.next_token[live], other.next_token[live])


@pytest.mark.parametrize("name", RULES)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_every_rule_is_greedy_at_temperature_zero(name: str, data: st.DataObject, seed: int) -> None:
    """Whatever the children were drawn from, and beside requests that are sampled."""
    rule, trees = RULES[name]
    tree = data.draw(trees)
    logits = logits_for(tree, seed)
    for b, j in itertools.product(range(tree.batch_size), range(1, tree.max_nodes)):
        if j % 3 and j < tree.sizes[b]:  # longer walks
            logits[b, int(tree.parents[b, j]), tree.tokens[b, j]] = 5.0 + j
    targets = logits.argmax(-1)
    probs = logits_for(tree, seed + 1).softmax(-1)
    drawn = TokenTree(tree.tokens, tree.parents, tree.sizes, probs, replacement=bool(seed % 2))
    verdict = rule(drawn, logits, step([SamplingParams(), SamplingParams(temperature=1.0)], tree))
    for b in range(0, tree.batch_size, 2):
        path, last = naive_walk(tree, b, targets[b].tolist())
        assert [j for j in verdict.path[b].tolist() if j >= 0] == path
        assert int(verdict.num_accepted[b]) == len(path)
        assert not path or int(verdict.next_token[b]) == last


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


@pytest.mark.parametrize("name", RULES)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_a_batch_is_its_rows(name: str, data: st.DataObject, seed: int) -> None:
    """With draft distributions: slots do not see each other."""
    rule, trees = RULES[name]
    tree = data.draw(trees)
    probs = logits_for(tree, seed + 1).softmax(-1)
    drawn = TokenTree(tree.tokens, tree.parents, tree.sizes, probs)
    logits = logits_for(tree, seed)
    together = rule(drawn, logits, step(SAMPLED, drawn))
    for b in range(tree.batch_size):
        sampler = Sampler(1, VOCAB, CPU)
        if tree.sizes[b]:
            sampler.start(0, SAMPLED[b % len(SAMPLED)], [1, 2])
        one = slice(b, b + 1)
        single = TokenTree(tree.tokens[one], tree.parents[one], tree.sizes[one], probs[one])
        alone = rule(single, logits[one], sampler.at(torch.tensor([b + 5]), tree.max_nodes, [0]))
        assert torch.equal(alone.path[0], together.path[b])
        assert torch.equal(alone.num_accepted[0], together.num_accepted[b])
        if tree.sizes[b]:
            assert torch.equal(alone.next_token[0], together.next_token[b])


@pytest.mark.parametrize("rule", [Coupled(), *(rule for rule, _ in RULES.values())], ids=["coupled", *RULES])
@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("drawn", [False, True])
def test_empty_slots(rule: AcceptanceRule, processed: bool, drawn: bool) -> None:
    """Nothing is accepted in them, and nothing of them is read."""

    class Nothing(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores

    tree = TokenTree.from_paths([-1, 3, -1], [[], [[1, 2]], []])
    if drawn:
        probs = torch.full((3, 3, VOCAB), 0.2)
        probs[0] = torch.nan
        tree = TokenTree(tree.tokens, tree.parents, tree.sizes, probs)
    sampler = Sampler(3, VOCAB, CPU)
    sampler.start(1, SamplingParams(temperature=1.0), [1], LogitsProcessorList([Nothing()] if processed else []))
    logits = torch.zeros(3, 3, VOCAB)
    logits[0] = torch.nan
    verdict = rule(tree, logits, sampler.at(torch.tensor([0, 4, 0]), 3, [1]))
    assert verdict.num_accepted.tolist()[::2] == [0, 0]
    assert (verdict.path[::2] == -1).all()
    assert int(verdict.num_accepted[1]) >= 1


@pytest.mark.parametrize("name", ["block", "traversal", "typical", "relaxed"])
def test_processors_see_every_node_s_own_history(name: str) -> None:
    """Of the request that brought them, in text order; users' rules hold at every node that is judged."""
    seen: list[list[int]] = []

    class Never(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            seen.append(input_ids[0].tolist())
            return scores.index_fill(-1, torch.tensor([4]), -torch.inf)

    paths = [[1, 2, 4]] if name == "block" else [[1, 2, 4], [1, 3], [2, 1]]
    tree = TokenTree.from_paths([0, 3], [paths, [[1]]])
    tree = TokenTree(tree.tokens, tree.parents, tree.sizes, torch.full((*tree.tokens.shape, VOCAB), 0.2))
    for seed in range(8):
        seen.clear()
        sampler = Sampler(2, VOCAB, CPU)
        sampler.start(0, SamplingParams(temperature=1.0, seed=seed), [3, 0], LogitsProcessorList([Never()]))
        sampler.start(1, SamplingParams(temperature=1.0, seed=seed), [3])
        sampling = sampler.at(torch.tensor([2, 1]), tree.max_nodes, [0, 1])
        verdict = RULES[name][0](tree, torch.zeros(2, tree.max_nodes, VOCAB), sampling)
        assert 4 not in verdict.emitted(tree)[0, : int(verdict.num_accepted[0])].tolist()
        assert [3, 0] in seen
        beginnings = [[3, 0, *path[:length]] for path in paths for length in range(len(path) + 1)]
        assert all(history in beginnings for history in seen)
        assert len(seen) <= len({tuple(b) for b in beginnings})


def test_the_penalty_counts_the_path() -> None:
    """A drafted token counts as written at the nodes below it, for every rule that looks at them out of order."""
    tree = TokenTree.from_paths([0], [[[1, 1], [2, 1]]])
    logits = torch.tensor([2.0, 1.9, 1.8, 0.0, 0.0]).expand(1, 5, -1).clone()
    for rule in (Traversal(), Typical(), Relaxed(), Rejection()):
        sampler = Sampler(1, VOCAB, CPU)
        sampler.start(0, SamplingParams(repetition_penalty=4.0), [0])
        probs = torch.full((1, 5, VOCAB), 0.2)
        drawn = TokenTree(tree.tokens, tree.parents, tree.sizes, probs)
        verdict = rule(drawn, logits, sampler.at(torch.tensor([1]), 5, [0]))
        # 0 is in the prompt: 1 is best; then 1 is penalised, too, and 2 is best, which no child carries
        assert verdict.emitted(tree)[0, : int(verdict.num_accepted[0])].tolist() == [1, 2]
