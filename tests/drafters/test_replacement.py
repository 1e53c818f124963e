"""Trees whose siblings are drawn with replacement: drafters' states, and the target's KV, with equal siblings."""

from __future__ import annotations

import pytest
import torch

from specdec import registry
from specdec.core import Verdict
from specdec.sampling import SamplingParams
from specdec.target import Target
from specdec.tree.static import StaticTree
from specdec.tree.token_tree import TokenTree

from ..fakes import Harness, check_shape
from ..models import make_model
from .test_contract import NAMES, PROMPTS, VOCAB, make_drafter

TREE = StaticTree([[0], [1], [2], [0, 0], [0, 1], [1, 0]], replacement=True)
DRAW_NOTHING = ("recycling", "synthetic", "universal")


@pytest.mark.parametrize("shared", [False, True], ids=["own noise", "shared noise"])
@pytest.mark.parametrize("name", [name for name in NAMES if "tree" in registry.read_yaml("drafter", name)])
def test_drafters(name: str, shared: bool) -> None:
    """Three children of two possible tokens, so that some are equal; under noise that is shared nothing is drawn."""
    harness = Harness(make_drafter(name, tree=TREE), 3, VOCAB, SamplingParams(temperature=3.0, top_k=2, seed=3), shared)
    harness.enter([0, 2], [PROMPTS[0], PROMPTS[2]])
    orders = set()
    for _ in range(6):
        tree = harness.step()
        check_shape(tree)
        assert tree.replacement == (tree.draft_probs is not None) == (not shared and name not in DRAW_NOTHING)
        if tree.draft_probs is None:
            continue
        for b in (0, 2):
            parents = tree.parents[b, 1:].long()
            assert (tree.draft_probs[b, parents, tree.tokens[b, 1:]] > 0).all()
            first, *others = tree.tokens[b, 1:4].tolist()
            orders.add(tuple(token == first for token in others))
    assert len(orders) >= 3 or shared or name in DRAW_NOTHING, "siblings are drawn independently"


def test_adaptive_cuts_and_leaves_levels_out() -> None:
    """Of trees of all sizes that have siblings it is known how these were drawn, and from what."""
    settings = {"drafter": "draft_model", "tree": TREE, "curve": 0.2, "allowance": 1.0}
    harness = Harness(make_drafter("adaptive", **settings), 2, VOCAB, SamplingParams(temperature=3.0, top_k=2), False)
    harness.enter([0, 1], PROMPTS[:2])
    seen = set()
    for _ in range(12):
        tree = harness.step()
        check_shape(tree)
        seen.add(tree.max_nodes)
        if tree.max_nodes > 1:
            assert tree.replacement
            assert tree.draft_probs is not None
            parents = tree.parents[:, 1:].long().clamp_min(0)
            drawn = tree.draft_probs[torch.arange(2)[:, None], parents, tree.tokens[:, 1:]] > 0
            assert (drawn | (tree.parents[:, 1:] < 0)).all()
    assert {2, TREE.max_nodes} <= seen, "some are cut, others not"


def test_requests_at_temperature_zero_beside_sampled_ones() -> None:
    """Their siblings differ: the likeliest tokens, the first of which has all probability."""
    harness = Harness(make_drafter("draft_model", tree=TREE), 2, VOCAB, SamplingParams(), False)
    harness.enter([0], [PROMPTS[0]])
    harness.params = SamplingParams(temperature=1.0)
    harness.enter([1], [PROMPTS[1]])
    tree = harness.step()
    assert tree.replacement
    assert tree.draft_probs is not None
    assert len(set(tree.tokens[0, 1:4].tolist())) == 3
    assert tree.draft_probs[0, 0, tree.tokens[0, 1:4]].tolist() == [1.0, 0.0, 0.0]


@torch.inference_mode()
def test_equal_siblings_in_the_target() -> None:
    """Each has a place of its own in the KV: either path can be kept, with what is below it."""
    model = make_model(vocab_size=VOCAB, dtype=torch.float64)
    tokens, parents = [7, 3, 3, 5, 5, 9], [-1, 0, 0, 1, 2, 2]
    for first, last in ((1, 3), (2, 4), (2, 5)):
        target = Target(model)
        target.open(1, 20, 6)
        target.prefill([0], [[1, 2]])
        logits = target.verify(TokenTree.from_lists([(tokens, parents)])).logits[0]
        assert torch.equal(logits[1], logits[2])
        text = [1, 2, 7, 3, tokens[last]]
        wanted = model(torch.tensor([text])).logits[0, -1]
        assert torch.allclose(logits[last], wanted, rtol=0, atol=1e-12)
        path = torch.tensor([[0, first, last, -1, -1, -1]])
        target.commit(Verdict(path, torch.tensor([3], dtype=torch.int32), torch.tensor([8])))
        after = target.verify(TokenTree.roots(torch.tensor([8]))).logits[0, 0]
        assert torch.allclose(after, model(torch.tensor([[*text, 8]])).logits[0, -1], rtol=0, atol=1e-12)
