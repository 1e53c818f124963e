"""Block verification: how much of a drafted chain is accepted is decided for the chain as a whole.

Sun et al., "Block Verification Accelerates Speculative Decoding" (arXiv 2403.10444). With c_0 = 1, and
c_i = min(1, c_{i-1} target / draft) at the i-th drafted token, the block ends at node i with probability
S_i / (S_i + 1 - c_i), S_i = sum(max(0, c_i target - draft)), at the last node with c_i. The longest such block is
taken, and the token after it is drawn from max(0, c_i target - draft), after the last node from the target.

Guarantee: the text is distributed as the target alone would write it, and no rule for chains accepts more on average.
Why: the tokens down to node i are written and not all refused with probability min(1, ...) in place of a product of
minima: a token that the target likes more than the draft does makes up for one before it. What is missing of the
target is again the residual, now of the whole block.

Chains only. A token that the draft gives no probability to counts as fixed; children that were fixed without drawing
are judged by the target alone, as `rejection` does, and there a tree is welcome. On a GPU it is not looked whether a
tree is a chain, which would read to the host: there first children are judged, and others left alone, which is
lossless too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specdec.acceptance.coupled import follow
from specdec.acceptance.paths import PerSlot, row_of, verdict_at
from specdec.acceptance.residual import arrival, reject
from specdec.core import Verdict
from specdec.sampling import StepSampling
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Block:
    """See the module. Lossless in distribution.

    Raises:
        ValueError: children were drawn, and a node has more than one.
    """

    lossless: ClassVar[bool] = True
    shared_noise: ClassVar[bool] = False

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """`logits` `[B, N, V]`."""
        if tree.draft_probs is None:
            return follow(tree, logits, sampling)
        if not sampling.at_once:
            _check_chain(tree)
        return _verify(tree, tree.draft_probs, logits, sampling)


def _check_chain(tree: TokenTree) -> None:
    above = torch.arange(tree.max_nodes, device=tree.parents.device) - 1
    if bool(((tree.parents >= 0) & (tree.parents != above)).any()):
        raise ValueError(
            "block verification got a tree with siblings; expected chains. Use tree=chain, or acceptance=traversal"
        )


def _verify(tree: TokenTree, draft_probs: Tensor, logits: Tensor, sampling: StepSampling) -> Verdict:
    rows = torch.arange(tree.batch_size, device=logits.device)
    node = torch.zeros_like(rows)  # [B]
    walking = tree.sizes > 0
    last = node  # where the longest block so far ends
    below = torch.full_like(tree.tokens, -1)  # [B, N]
    for depth in range(tree.max_nodes):
        target = sampling.probs(row_of(logits, node), below[:, :depth])  # [B, V]
        if depth == 0:
            chance, after = torch.ones_like(target[:, 0]), PerSlot(tree.batch_size, 1, target)
        is_child = tree.parents == node[:, None]  # [B, N]
        parent, going = is_child.any(-1), walking
        child = is_child.int().argmax(-1)
        token = tree.tokens.gather(1, child[:, None])  # [B, 1]
        draft = row_of(draft_probs, node)
        left = reject(target, draft, token, chance)
        ends = going & sampling.accept(torch.where(parent, left.chance, chance), 0, depth) if depth else going
        rejected = parent & (left.total > 0)
        after.put(0, ends & rejected, left.weights)
        after.put(0, ends & ~rejected, target)
        last = torch.where(ends, node, last)
        chance = arrival(target.gather(1, token)[:, 0], draft.gather(1, token)[:, 0], chance)
        walking = going & parent
        node = torch.where(walking, child, node)
        below[:, depth] = torch.where(walking, token[:, 0], -1)
        # nothing further down can be accepted
        if not sampling.at_once and not (walking & (chance > 0)).any():
            break
    return verdict_at(tree, last, sampling.draw_from(after.at(0), 0))
