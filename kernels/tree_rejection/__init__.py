"""Recursive rejection over sampled trees: accept drafted tokens by chance, or draw from what they leave."""

from typing import Literal

import torch
from torch import Tensor

from specdec.kernels.common.checks import FLOATS, INTEGERS, check_sampling, check_tensor
from specdec.kernels.common.dispatch import prefers_triton, require_triton
from specdec.kernels.tree_rejection.naive import tree_rejection_naive


def tree_rejection(
    tokens: Tensor,
    parents: Tensor,
    sizes: Tensor,
    logits: Tensor,
    draft_probs: Tensor,
    positions: Tensor,
    seeds: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    replacement: bool = False,
    backend: Literal["auto", "naive", "triton"] = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk down every tree; at a node, try its children in index order against what the rejected ones left.

    A child is accepted with probability target / draft of its token, both as they are at its turn. A rejected one takes
    the draft's distribution off the target's and, unless siblings were drawn with replacement, its token off the
    draft's; both are then normalised. A child that the
    draft gives no probability counts as fixed: it is accepted with the target's probability, and rejection takes its
    token off the target's. When no child is left, the next token is drawn from what remains.

    The target's distribution is that of `specdec.kernels.target_tokens`: processed logits, one token at temperature 0.
    Chances come from `specdec.noise.ACCEPT_STREAM`, the last draw from RESIDUAL_STREAM, both at position
    `positions + depth + 1`. A NaN in a row that is reached rejects all children of its node and gives token 0; at
    temperature 0 the first NaN is the target's token.

    Args:
        tokens: `[B, N]` int64.
        parents: `[B, N]` int32 or int64, -1 for node 0, else smaller than the node.
        sizes: `[B]` int32 or int64, live nodes; 0 for an empty slot. Padding of all arguments may hold anything.
        logits: `[B, N, V]` floating point, contiguous in V; computed with as float32.
        draft_probs: `[B, N, V]` floating point, contiguous in V. Row j is what node j's children were drawn from,
            in index order; rows of leaves are not read.
        positions: `[B]` int32 or int64, where each root stands in its text.
        seeds: `[2, B]` int32, from `specdec.noise.seed_words`.
        temperature, top_k, top_p, min_p: `[B]`, as in `target_tokens`.
        replacement: siblings were drawn with replacement, and may carry the same token.
        backend: "auto" is triton on a GPU, naive elsewhere. Triton reads nothing to the host.

    Returns:
        path `[B, N]` int64 node ids, the root first, -1 padded; num_accepted `[B]` int32, 0 for an empty tree;
        next_token `[B]` int64, 0 for an empty tree.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is unknown.
    """
    check_sampling(logits, positions, sizes, seeds, temperature, top_k, top_p, min_p)
    check_tensor("tokens", tokens, logits.shape[:2], (torch.int64,), logits.device)
    check_tensor("parents", parents, logits.shape[:2], INTEGERS, logits.device)
    check_tensor("draft_probs", draft_probs, logits.shape, FLOATS, logits.device)
    if draft_probs.stride(2) != 1:
        raise ValueError(f"draft_probs must be contiguous in V, got strides {draft_probs.stride()}")
    if backend == "auto":
        backend = "triton" if prefers_triton(logits.device) else "naive"
    trees = (tokens, parents, sizes, logits, draft_probs, positions, seeds)
    if backend == "naive" or logits.shape[0] == 0:
        return tree_rejection_naive(*trees, temperature, top_k, top_p, min_p, replacement)
    if backend == "triton":
        require_triton()
        from specdec.kernels.tree_rejection.fused import tree_rejection_fused

        return tree_rejection_fused(*trees, temperature, top_k, top_p, min_p, replacement)
    raise ValueError(f"backend must be auto, naive or triton, got {backend!r}")
