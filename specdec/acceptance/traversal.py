"""Traversal verification: a tree is judged from its leaves up, so that a refused child does not end the walk above it.

Weng et al., "Traversal Verification for Speculative Tree Decoding" (arXiv 2505.12398). Nodes are visited in the order
in which a depth-first walk leaves them, children in index order, the root last. A node reached with chance
c = min(1, c_parent target / draft) is accepted with it, and with it the path from the root. Refused, it is taken out:
its parent's target becomes the residual max(0, c_parent target - draft), with sum S, its chance S / (S + 1 - c_parent),
and if siblings were drawn without replacement its draft distribution loses the token. The root's chance is always
1. The next token is drawn from what is left of the target at the accepted node. On a chain this is block verification,
below a root with leaves only it is recursive rejection.

Guarantee: the text is distributed as the target alone would write it.
Why, by induction on the number of nodes below a node: claim that it, or something below it, is accepted with
probability c, and that the text then goes on as its (residual) target says. A leaf does by definition. Else the first
child x, drawn from the draft, is accepted with text going on as it should, with probability
draft(x) min(1, c target(x) / draft(x)) = min(draft, c target)(x). With what is missing of 1 it is refused, and then the
node with a child less is met with chance S / (S + 1 - c) and target max(0, c target - draft) / S, where S + 1 - c is
just that missing probability: by induction y follows with max(0, c target - draft)(y), and both parts add up to
c target(y). The next child was drawn from the draft distribution that remains, whatever x was: without x, or with
replacement from the same one. What the claim does need is that subtrees of siblings are drawn
independently, and a step's drafts independently of those that earlier steps have looked at: see
`StepSampling.draft_keys`.

A child that the draft gives no probability to counts as fixed; where no child was drawn the target alone decides, as
`rejection` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specdec.acceptance.coupled import follow
from specdec.acceptance.paths import PerSlot, row_of, tokens_to, verdict_at
from specdec.acceptance.residual import arrival, reject, without
from specdec.core import Verdict
from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Traversal:
    """See the module. Lossless in distribution."""

    lossless: ClassVar[bool] = True
    shared_noise: ClassVar[bool] = False

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """`logits` `[B, N, V]`."""
        if tree.draft_probs is None:
            return follow(tree, logits, sampling)
        return _traverse(tree, tree.draft_probs, logits, sampling)


def tour(tree: TokenTree) -> tuple[Tensor, Tensor]:
    """A depth-first walk: `[B, 2N]` int64 the node entered or left at each turn, -1 for none, and `[B, 2N]` bool
    whether it is left."""
    nodes = tree.max_nodes
    inside = tree.ancestors.long()  # [B, N, N], [b, j, i]: j lies below i or is i
    weight = inside.sum(1)  # [B, N], nodes of each one's subtree
    place = torch.arange(nodes, device=weight.device)
    sibling = (tree.parents[:, :, None] == tree.parents[:, None]) & (place < place[:, None])  # [b, j, i]: i before j
    before = (sibling * weight[:, None]).sum(-1)  # [B, N], nodes below earlier siblings
    entered = 2 * (inside * before[:, None]).sum(-1) + tree.depths  # [B, N]
    padding = place >= tree.sizes[:, None]
    entered = torch.where(padding, 2 * nodes, entered)
    left = torch.where(padding, 2 * nodes, entered + 2 * weight - 1)
    walk = torch.full((tree.batch_size, 2 * nodes + 1), -1, device=weight.device)
    leaving = torch.zeros_like(walk, dtype=torch.bool)
    numbers = place.expand(tree.batch_size, -1)
    walk = walk.scatter(1, entered, numbers).scatter(1, left, numbers)
    return walk[:, :-1], leaving.scatter(1, left, True)[:, :-1]


def _traverse(tree: TokenTree, draft_probs: Tensor, logits: Tensor, sampling: StepSampling) -> Verdict:
    """In lockstep: every slot is at the same turn of its own walk. What a node's refused children left is kept for the
    nodes above the walk only, one for each depth. What its last child leaves is made at the end, for the accepted node
    alone; until then its sum will do. On a CPU turns at which there is nothing to do are left out."""
    rows = torch.arange(tree.batch_size, device=logits.device)
    walk, leaving = tour(tree)
    last_child = _last_children(tree)  # [B, N], -1 for leaves
    levels = tree.max_nodes if sampling.at_once else int(tree.depths.max()) + 1
    root_target = sampling.probs(logits[:, 0], tree.tokens[:, :0])  # [B, V]
    targets, drafts = (PerSlot(tree.batch_size, levels, root_target) for _ in range(2))
    everywhere = torch.ones_like(tree.sizes, dtype=torch.bool)
    targets.put(0, everywhere, root_target)
    drafts.put(0, everywhere, draft_probs[:, 0])
    chance = torch.ones(tree.batch_size, levels, dtype=root_target.dtype, device=logits.device)
    before = chance.clone()  # [B, levels], without its last child's refusal
    last = torch.zeros_like(rows)
    walking = tree.sizes > 1
    for turn in range(1, 2 * tree.max_nodes - 1):
        node = walk[:, turn].clamp_min(0)  # [B]
        depth = tree.depths[rows, node].long()
        above = (depth - 1).clamp_min(0)
        upper = chance[rows, above]
        moving = walking & (node > 0)
        leaves = moving & leaving[:, turn] & (upper > 0)  # below a node that cannot be accepted nothing can
        token = tree.tokens[rows, node]

        enters = moving & ~leaving[:, turn]
        fits = arrival(targets.of(above, token), drafts.of(above, token), upper)
        chance[rows, depth] = torch.where(enters, fits, chance[rows, depth])
        enters = enters & (last_child[rows, node] >= 0) & (fits > 0)
        if sampling.at_once or enters.any():
            targets.put(depth, enters, sampling.probs(row_of(logits, node), tokens_to(tree, node, enters)))
            drafts.put(depth, enters, row_of(draft_probs, node))

        if not sampling.at_once and not leaves.any():
            continue
        accepted = leaves & sampling.accept(torch.where(leaves, chance[rows, depth], 0.0), 0, turn)
        last = torch.where(accepted, node, last)
        walking = walking & ~accepted
        if not sampling.at_once and not walking.any():
            break
        refused = leaves & ~accepted
        target, draft = targets.at(above), drafts.at(above)
        left = reject(target, draft, token[:, None], upper)
        before[rows, above] = torch.where(refused, upper, before[rows, above])
        chance[rows, above] = torch.where(refused, left.chance, upper)
        sibling = refused & (last_child[rows, tree.parents[rows, node].long()] != node)
        if sampling.at_once or sibling.any():
            targets.put(above, sibling & (left.total > 0), left.weights.div_(left.total.clamp_min(1e-38)[:, None]))
            if not tree.replacement:
                drafts.put(above, sibling, without(draft, token[:, None]))
    place = tree.depths[rows, last].long()
    rest = _at_the_end(
        tree, last, last_child, (targets.at(place), drafts.at(place), before[rows, place]), logits, sampling
    )
    return verdict_at(tree, last, sampling.draw_from(rest, 0))


def _last_children(tree: TokenTree) -> Tensor:
    """`[B, N]` int64, -1 for a leaf."""
    place = torch.arange(tree.max_nodes, device=tree.parents.device)
    below = tree.parents[:, :, None] == place  # [B, N, N], [b, i, j]: i is a child of j
    return torch.where(below, place[:, None], -1).amax(1)


def _at_the_end(
    tree: TokenTree,
    last: Tensor,
    last_child: Tensor,
    kept: tuple[Tensor, Tensor, Tensor],
    logits: Tensor,
    sampling: StepSampling,
) -> Tensor:
    """`[B, V]`: what is left of the target at the accepted node, all of whose children were refused; of a leaf's, all.

    Args:
        kept: of its depth: target and draft `[B, V]`, and chance `[B]`, at the turn of its last child.
    """
    child = last_child.gather(1, last[:, None])[:, 0]
    leaf = child < 0
    target, draft, chance = kept
    left = reject(target, draft, tree.tokens.gather(1, child.clamp_min(0)[:, None]), chance)
    rest = torch.where((leaf | (left.total <= 0))[:, None], target, left.weights)
    leaf = leaf & (last > 0)
    if not sampling.at_once and not leaf.any():
        return rest
    return torch.where(leaf[:, None], sampling.probs(row_of(logits, last), tokens_to(tree, last, leaf)), rest)
