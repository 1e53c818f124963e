"""Riders in the target's forward, and nowhere else: not in logits of nodes, verdicts, KV, texts or counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.acceptance.block import Block
from specdec.acceptance.coupled import Coupled
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.relaxed import Relaxed
from specdec.acceptance.traversal import Traversal
from specdec.acceptance.typical import Typical
from specdec.capture import CapturedStep, Graphs
from specdec.core import AcceptanceRule, Drafter, DraftNeeds, TargetOutput, Verdict
from specdec.decode import decode
from specdec.drafters.hybrid import Hybrid
from specdec.drafters.lookahead import Lookahead
from specdec.drafters.ngram import NGram
from specdec.drafters.none import NoDrafter
from specdec.metrics import DecodingStats, TargetCost
from specdec.request import Request
from specdec.sampling import DraftNoise, SamplingParams
from specdec.step import Step
from specdec.target import Target
from specdec.tree.riders import Riders
from specdec.tree.token_tree import TokenTree

from .fakes import Scripted, ScriptState, climb
from .models import VOCAB, make_model
from .test_step import Replayed

PROMPTS = [[5, 6, 7, 5, 6], [11], [2, 3, 2, 3, 2, 3, 2], [9, 8], [4] * 12]
TREES = [([1, 2, 3, 4], [-1, 0, 1, 0]), ([7], [-1]), ([], []), ([8, 9], [-1, 0]), ([5, 6, 7], [-1, 0, 0])]
ABOVE = [-1, 0, 1, -1, 3, 0]  # two children of the root, with something below
RULES: list[AcceptanceRule] = [Coupled(), Rejection(), Block(), Traversal(), Typical(), Relaxed()]


def riding(batch: int, seed: int = 0) -> Riders:
    tokens = torch.randint(0, VOCAB, (batch, len(ABOVE)), generator=torch.Generator().manual_seed(seed))
    return Riders(tokens, torch.tensor(ABOVE))


def next_logits(model: PreTrainedModel, text: list[int]) -> Tensor:
    """`[V]`, by a plain forward."""
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([text])).logits[0, -1]
    return logits


@pytest.mark.parametrize("slots", [[0, 1, 3, 4], [0]], ids=["ragged", "alone"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])  # full, sliding, alternating
def test_a_forward_with_riders(architecture: str, slots: list[int]) -> None:
    """Nodes as without them; a rider as a plain forward over its path; hidden states of nodes alone."""
    model = make_model(architecture, dtype=torch.float64)
    target, capacity = Target(model, hidden_layers=(0, -1)), max(slots) + 1
    target.open(capacity, 20, 10)
    target.prefill(slots, [PROMPTS[s] for s in slots])
    plain = TokenTree.from_lists(TREES[:capacity])
    without = target.verify(plain)
    assert without.riders is None
    tree = TokenTree(plain.tokens, plain.parents, plain.sizes, riders=riding(capacity))
    output = target.verify(tree)
    assert output.riders is not None
    assert tree.riders is not None
    assert output.riders.shape == (capacity, len(ABOVE), VOCAB)
    live = torch.arange(plain.max_nodes) < plain.sizes[:, None]
    for ours, theirs in ((output.logits, without.logits), *((output.hidden[i], without.hidden[i]) for i in (0, -1))):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours[live], theirs[live], atol=1e-10)
    for s in slots:
        for r in range(len(ABOVE)):
            path = [int(tree.riders.tokens[s, i]) for i in reversed(climb(ABOVE, r))]
            wanted = next_logits(model, [*PROMPTS[s], TREES[s][0][0], *path])
            assert torch.allclose(output.riders[s, r], wanted, atol=1e-4)  # gemma2 has float32 within


@torch.inference_mode()
def test_what_is_kept_is_the_path() -> None:
    """The committed part of the arena is the same after steps with riders and without."""
    model = make_model(dtype=torch.float64)
    kept = []
    for riders in (None, riding(2)):
        target = Target(model)
        target.open(2, 30, 10)
        target.prefill([0, 1], PROMPTS[:2])
        for _ in range(3):
            tree = TokenTree.from_lists([([1, 2, 3, 4], [-1, 0, 1, 0]), ([7, 8], [-1, 0])])
            target.verify(TokenTree(tree.tokens, tree.parents, tree.sizes, riders=riders))
            path = torch.tensor([[0, 3, -1, -1], [0, 1, -1, -1]])
            target.commit(Verdict(path, torch.tensor([2, 2]), torch.tensor([0, 0])))
        assert target.lengths.tolist() == [11, 7]
        kept.append([x[b, :, : 11 - 4 * b] for x in target.cache.keys + target.cache.values for b in (0, 1)])
    for with_none, with_some in zip(*kept, strict=True):
        assert torch.allclose(with_none, with_some, atol=1e-10)


class Riding(Scripted):
    """Knows the text and puts it into riders: the best thing that a rule could take by mistake.

    Args:
        beside: proposes nothing else, or the trees of Scripted, too.
    """

    def __init__(self, texts: Any, beside: bool, **settings: Any):
        super().__init__(texts, hit=0.6, max_nodes=6, **settings)
        self.beside = beside
        self.needs = DraftNeeds(max_nodes=6, riders=3)
        self.seen: list[int] = []

    def propose(self, state: ScriptState, roots: Tensor, noise: DraftNoise) -> TokenTree:
        tree = super().propose(state, roots, noise) if self.beside else TokenTree.roots(roots)
        tokens = torch.zeros(len(roots), 3, dtype=torch.int64)
        for slot, root in enumerate(roots.tolist()):
            if root >= 0:
                truth = state.texts[slot][state.committed[slot] + 1 :][:3]
                tokens[slot, : len(truth)] = torch.tensor(truth, dtype=torch.int64)
        riders = Riders(tokens, torch.tensor([-1, 0, 1]))
        return TokenTree(tree.tokens, tree.parents, tree.sizes, tree.draft_probs, riders)

    def observe(self, state: ScriptState, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        super().observe(state, tree, verdict, output)
        assert output.logits.shape[:2] == tree.tokens.shape
        assert output.riders is not None
        for slot in (verdict.num_accepted > 0).nonzero()[:, 0].tolist():
            self.seen.append(int(output.riders[slot, 0].argmax()))


REQUESTS = [Request(p, 20) for p in PROMPTS]


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(make_model(dtype=torch.float64))


def serve(
    target: Target, drafter: Any, rule: AcceptanceRule, slots: int = 5, kind: Callable[..., Step] = Step
) -> tuple[list[list[int]], DecodingStats]:
    stats, step = DecodingStats(), kind(target, drafter, rule, slots, 32)  # no longer than the longest text
    done = {g.index: g.new_ids for g, _ in decode(step, REQUESTS, stats) if g.finished}
    return [done[i] for i in range(len(REQUESTS))], stats


@pytest.fixture(scope="module")
def texts(target: Target) -> list[list[int]]:
    return serve(target, NoDrafter(), Coupled())[0]


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__.lower())
def test_no_rule_accepts_a_rider_and_none_is_counted(
    target: Target, texts: list[list[int]], rule: AcceptanceRule, slots: int
) -> None:
    known = {tuple(p): t for p, t in zip(PROMPTS, texts, strict=True)}
    drafter = Riding(known, beside=False)
    found, stats = serve(target, drafter, rule, slots)
    assert found == texts
    assert stats.accept_lengths == [[1] * 19] * 5
    for request in stats.requests:
        assert (request.nodes, request.proposed_depth, request.accepted) == (0, 0, 0)
        assert (request.offered_by_depth, request.accepted_by_depth) == ([], [])
        assert request.riders == 3 * 19
    rows = sum(len(p) + 19 * 4 for p in PROMPTS)
    assert TargetCost(parameters=7, weight_bytes=0, kv_bytes_per_token=0).model_flops(stats) == 2 * 7 * rows
    assert drafter.seen  # and the drafter gets what it asked for: after the true next token comes the one after it
    assert drafter.seen[: 5 if slots == 5 else 1] == [t[2] for t in texts][: 5 if slots == 5 else 1]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_trees_are_judged_as_without_riders(target: Target, texts: list[list[int]], slots: int) -> None:
    known = {tuple(p): t for p, t in zip(PROMPTS, texts, strict=True)}
    plain = serve(target, Scripted(known, hit=0.6, max_nodes=6), Coupled(), slots)
    ours = serve(target, Riding(known, beside=True), Coupled(), slots)
    assert ours[0] == plain[0] == texts
    for mine, other in zip(ours[1].requests, plain[1].requests, strict=True):
        for name in ("accept_lengths", "nodes", "proposed_depth", "accepted", "offered_by_depth", "accepted_by_depth"):
            assert getattr(mine, name) == getattr(other, name)


def captured(target: Target, drafter: Drafter, rule: AcceptanceRule, capacity: int, max_length: int) -> Step:
    return CapturedStep(target, drafter, rule, capacity, max_length, Graphs(Replayed))


def test_captured_steps_take_riders_along(target: Target, texts: list[list[int]]) -> None:
    """Beside a drafter on the host a graph holds copies of tree and riders; on the device the whole step."""
    known = {tuple(p): t for p, t in zip(PROMPTS, texts, strict=True)}
    counted = []
    for kind in (Step, captured):
        drafter = Riding(known, beside=True)
        found, stats = serve(target, drafter, Coupled(), 3, kind)
        assert found == texts
        counted.append((stats.accept_lengths, drafter.seen))
        found, stats = serve(target, Lookahead(3, 4, 2), Coupled(), 3, kind)
        assert found == texts
        counted.append((stats.accept_lengths, []))
    assert counted[:2] == counted[2:]


@pytest.mark.parametrize("mode", ["merge", "fallback", "acceptance"])
def test_in_a_hybrid(target: Target, texts: list[list[int]], mode: str) -> None:
    """The window goes on whichever tree is verified."""
    alone: list[Tensor] = []
    drafter = Hybrid([NGram(), Lookahead(3, 4, 2)], mode)
    assert drafter.needs.riders == Lookahead(3, 4, 2).needs.riders == 8
    for _ in range(2):
        found, stats = serve(target, drafter, Coupled(), 2)
        assert found == texts
        assert all(r.riders == 8 * r.steps for r in stats.requests)
        alone.append(torch.tensor([r.steps for r in stats.requests]))
    assert torch.equal(*alone)
    with pytest.raises(ValueError, match="two drafters with riders"):
        Hybrid([Lookahead(), Lookahead()])


@pytest.mark.parametrize(
    ("needs", "token", "message"),
    [(2, 1, "proposed 3 riders; its needs.riders says 2"), (3, VOCAB, f"proposed token {VOCAB}; the target's")],
)
def test_a_drafter_that_is_wrong_is_told(target: Target, needs: int, token: int, message: str) -> None:
    class Wrong(NoDrafter):
        def propose(self, state: None, roots: Tensor, noise: DraftNoise) -> TokenTree:
            tree = TokenTree.roots(roots)
            riders = Riders(torch.full((len(roots), 3), token), torch.tensor([-1, 0, 1]))
            return TokenTree(tree.tokens, tree.parents, tree.sizes, riders=riders)

    drafter = Wrong()
    drafter.needs = DraftNeeds(max_nodes=1, riders=needs)
    with pytest.raises(ValueError, match=message):
        serve(target, drafter, Coupled())


@pytest.mark.slow
def test_compiled_passes_run_riders() -> None:
    """One graph for nodes and riders together."""
    model = make_model(dtype=torch.float32, num_hidden_layers=1)
    logits = []
    for compile in (False, True):
        target = Target(model, compile=compile)
        target.open(2, 20, 10)
        target.prefill([0, 1], PROMPTS[:2])
        tree = TokenTree.from_lists(TREES[:2])
        output = target.verify(TokenTree(tree.tokens, tree.parents, tree.sizes, riders=riding(2)))
        assert output.riders is not None
        logits.append([output.logits[0], output.logits[1, :1], output.riders])
    for plain, compiled in zip(*logits, strict=True):
        assert torch.allclose(plain, compiled, atol=1e-4)


def test_settings_of_a_request_go_with_riders(target: Target) -> None:
    """Penalties count a node's own path, in which no rider is; sampled texts are those without them."""
    sampled = SamplingParams(temperature=0.9, repetition_penalty=1.4, top_k=9, seed=4)
    texts = []
    for drafter in (NoDrafter(), Lookahead(4, 4, 3)):
        step = Step(target, drafter, Coupled(), 3, 32)
        done = {g.index: g.new_ids for g, _ in decode(step, [Request(p, 20, sampled) for p in PROMPTS]) if g.finished}
        texts.append(done)
    assert texts[0] == texts[1]
