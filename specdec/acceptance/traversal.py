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
from specdec.acceptance.paths import tokens_to, verdict_at
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
    nodes above the walk only, one for each depth. On a CPU turns at which there is nothing to do are left out."""
    rows = torch.arange(tree.batch_size, device=logits.device)
    walk, leaving = tour(tree)
    is_parent = (tree.parents[:, :, None] == torch.arange(tree.max_nodes, device=walk.device)).any(1)  # [B, N]
    levels = tree.max_nodes if sampling.at_once else int(tree.depths.max()) + 1
    root_target = sampling.probs(logits[:, 0], tree.tokens[:, :0])  # [B, V]
    target = root_target[:, None].repeat(1, levels, 1)  # [B, levels, V]
    draft = draft_probs[:, :1].repeat(1, levels, 1)
    chance = torch.ones_like(target[..., 0])  # [B, levels]
    last = torch.zeros_like(rows)
    walking = tree.sizes > 1
    for turn in range(1, 2 * tree.max_nodes - 1):
        node = walk[:, turn].clamp_min(0)  # [B]
        moving = walking & (node > 0)
        leaves = moving & leaving[:, turn]
        depth = tree.depths[rows, node].long()
        above = (depth - 1).clamp_min(0)
        token = tree.tokens[rows, node][:, None]  # [B, 1]
        upper = target[rows, above], draft[rows, above], token, chance[rows, above]
        parent = is_parent[rows, node]

        enters = moving & ~leaves
        chance[rows, depth] = torch.where(enters, arrival(*upper), chance[rows, depth])
        enters = enters & parent
        if sampling.at_once or enters.any():
            probs = sampling.probs(logits[rows, node], tokens_to(tree, node, enters))
            target[rows, depth] = torch.where(enters[:, None], probs, target[rows, depth])
            draft[rows, depth] = torch.where(enters[:, None], draft_probs[rows, node], draft[rows, depth])

        if not sampling.at_once and not leaves.any():
            continue
        accepted = leaves & sampling.accept(torch.where(leaves, chance[rows, depth], 0.0), 0, turn)
        last = torch.where(accepted, node, last)
        walking = walking & ~accepted
        refused = leaves & ~accepted
        left, left_chance = reject(*upper)
        target[rows, above] = torch.where(refused[:, None], left, upper[0])
        chance[rows, above] = torch.where(refused, left_chance, upper[3])
        if not tree.replacement:
            draft[rows, above] = torch.where(refused[:, None], without(upper[1], token), upper[1])
        if not sampling.at_once and not walking.any():
            break
    return verdict_at(tree, last, sampling.draw_from(_at_the_end(tree, last, is_parent, target, logits, sampling), 0))


def _at_the_end(
    tree: TokenTree, last: Tensor, is_parent: Tensor, target: Tensor, logits: Tensor, sampling: StepSampling
) -> Tensor:
    """`[B, V]`: what is left of the target at the accepted node; of a leaf's, all."""
    rows = torch.arange(tree.batch_size, device=last.device)
    left = target[rows, tree.depths[rows, last].long()]
    leaf = (last > 0) & ~is_parent[rows, last]
    if not sampling.at_once and not leaf.any():
        return left
    return torch.where(leaf[:, None], sampling.probs(logits[rows, last], tokens_to(tree, last, leaf)), left)
