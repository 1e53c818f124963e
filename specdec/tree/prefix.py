"""The first nodes of trees. A parent comes before its children, so they are trees, too, with the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.tree.token_tree import TokenTree, num_words


def first_nodes(tree: TokenTree, counts: Tensor, max_nodes: int) -> TokenTree:
    """The first `counts` `[B]` int32 nodes of every tree, or all where there are fewer, in `max_nodes` columns.

    Children that are left out are the last of their parent's, so those of drawn children that stay are the first ones
    drawn, as `draft_probs` says. Riders stay.
    """
    sizes = torch.minimum(tree.sizes, counts)
    keep = torch.arange(max_nodes, device=sizes.device) < sizes[:, None]  # [B, max_nodes]
    made = TokenTree(
        torch.where(keep, tree.tokens[:, :max_nodes], 0),
        torch.where(keep, tree.parents[:, :max_nodes], -1),
        sizes,
        None if tree.draft_probs is None else tree.draft_probs[:, :max_nodes],
        tree.riders,
        tree.replacement,
    )
    words = tree.words[:, :max_nodes, : num_words(max_nodes)]
    depths = torch.where(keep, tree.depths[:, :max_nodes], 0)
    made.no_deeper_than(tree.most_depth)
    return made.with_shape(depths, torch.where(keep[..., None], words, 0).contiguous())
