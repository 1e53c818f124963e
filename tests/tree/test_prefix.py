"""The first nodes of random trees, against lists; and the first levels of a policy, against its whole trees."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from specdec.core import TreePolicy
from specdec.sampling import Sampler, SamplingParams
from specdec.tree.best_first import BestFirst
from specdec.tree.grow import Frontier, grow
from specdec.tree.prefix import first_nodes
from specdec.tree.riders import Riders
from specdec.tree.shallow import Shallow
from specdec.tree.static import StaticTree, chain
from specdec.tree.token_tree import TokenTree

from ..fakes import check_shape

PATHS = [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("most", [1, 5, 70])
def test_as_lists_cut_off(most: int) -> None:
    draw = random.Random(most)
    trees = []
    for size in (0, 1, 3, 64, 65, 70):
        parents = [-1, *(draw.randrange(j) for j in range(1, size))][:size]
        trees.append(([draw.randrange(9) for _ in range(size)], parents))
    tree = TokenTree.from_lists(trees)
    counts = [draw.randint(0, most) for _ in trees]
    made = first_nodes(tree, torch.tensor(counts, dtype=torch.int32), most)
    check_shape(made)
    assert made.max_nodes == most
    for slot, ((tokens, parents), count) in enumerate(zip(trees, counts, strict=True)):
        size = min(count, len(tokens))
        assert int(made.sizes[slot]) == size
        assert made.tokens[slot, :size].tolist() == tokens[:size]
        assert made.parents[slot, :size].tolist() == parents[:size]


@pytest.mark.parametrize("replacement", [False, True])
def test_what_children_were_drawn_from_and_riders_stay(replacement: bool) -> None:
    probs, riders = torch.rand(2, 4, 5), Riders(torch.tensor([[1], [2]]), torch.tensor([-1]))
    parents = torch.tensor([[-1, 0, 0, 1]] * 2, dtype=torch.int32)
    sizes = torch.tensor([4, 4], dtype=torch.int32)
    tree = TokenTree(torch.arange(8).view(2, 4), parents, sizes, probs, riders, replacement)
    made = first_nodes(tree, torch.tensor([1, 3], dtype=torch.int32), 3)
    assert made.draft_probs is not None
    assert torch.equal(made.draft_probs, probs[:, :3])
    assert made.riders is riders
    assert made.replacement == replacement
    assert first_nodes(TokenTree.chain(tree.tokens), tree.sizes, 2).draft_probs is None


def tables(frontier: Frontier) -> Tensor:
    """Logits that depend on the token and its level."""
    generator = torch.Generator().manual_seed(frontier.level)
    return torch.randn(11, 11, generator=generator)[frontier.tokens]


@pytest.mark.parametrize("shared", [True, False], ids=["shared noise", "own noise"])
@pytest.mark.parametrize(
    "policy",
    [chain(4), StaticTree(PATHS), StaticTree(PATHS, replacement=True), BestFirst(40, 4, 3)],
    ids=["chain", "static", "with replacement", "best first, unpruned"],
)
def test_the_first_levels_are_the_first_nodes(policy: TreePolicy, shared: bool) -> None:
    sampler = Sampler(3, 11, torch.device("cpu"))
    for slot in range(2):
        sampler.start(slot, SamplingParams(temperature=0.8, seed=slot), [1])
    noise = sampler.at(torch.tensor([5, 6, 0]), policy.max_nodes, [0, 1]).draft_noise(shared)
    roots, logits = torch.tensor([3, 4, -1]), torch.randn(3, 11, generator=torch.Generator().manual_seed(9))
    whole = grow(policy, roots, logits, tables, noise)
    for depth in range(1, policy.depth + 1):
        made = grow(Shallow(policy, depth), roots, logits, tables, noise)
        check_shape(made.tree)
        nodes = made.tree.max_nodes
        assert int(made.tree.depths.max()) == depth
        assert nodes == int((whole.tree.depths[0] <= depth).sum())
        wanted = first_nodes(whole.tree, torch.full((3,), nodes, dtype=torch.int32), nodes)
        assert made.tree.replacement == whole.tree.replacement == wanted.replacement
        assert torch.equal(made.tree.tokens, wanted.tokens)
        assert torch.equal(made.tree.parents, wanted.parents)
        onward = whole.tree.depths[:2, :nodes] < depth
        assert torch.equal(made.expanded[:2][onward], whole.expanded[:2, :nodes][onward])
        assert (made.expanded[:2][~onward] == -1).all()
        if made.tree.draft_probs is not None:
            assert whole.tree.draft_probs is not None
            assert torch.equal(made.tree.draft_probs[:2][onward], whole.tree.draft_probs[:2, :nodes][onward])
