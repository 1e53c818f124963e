"""The target's own token at every node of a tree, under every sequence's own settings."""

from typing import Literal

from torch import Tensor

from specdec.kernels.common.checks import INTEGERS, check_sampling, check_tensor
from specdec.kernels.common.dispatch import prefers_triton, require_triton
from specdec.kernels.target_tokens.naive import target_tokens_naive


def target_tokens(
    logits: Tensor,
    positions: Tensor,
    depths: Tensor,
    sizes: Tensor,
    seeds: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    backend: Literal["auto", "naive", "triton"] = "auto",
) -> Tensor:
    """What the target draws after every node, with noise that is a function of (seed, position, token) alone.

    At temperature 0 that is the argmax, the first of equals. Else temperature, top-k, top-p and min-p are applied as
    transformers' warpers apply them, and the Gumbel-argmax of what stays is taken, with the noise of
    `specdec.noise.TARGET_STREAM` at position `positions + depths + 1`. Of equal logits at the cut of top-k all stay; at
    the cut of top-p those with the higher ids stay. A NaN is the greatest of all, as for `torch.argmax`: the first one
    of a row is its token, whatever the settings. If all logits of a row are -inf, its token is 0.

    Settings are read on the device, so one captured launch serves any mix of them.

    Args:
        logits: `[B, N, V]` floating point, contiguous in V; computed with as float32. Padding may hold anything.
        positions: `[B]` int32 or int64, where each root stands in its text.
        depths: `[B, N]` int32 or int64, of every node below its root.
        sizes: `[B]` int32 or int64, live nodes; 0 for an empty slot.
        seeds: `[2, B]` int32, from `specdec.noise.seed_words`.
        temperature: `[B]` float32, at least 0.
        top_k: `[B]` int32 or int64; 0 keeps all.
        top_p: `[B]` float32 in (0, 1]; 1 keeps all.
        min_p: `[B]` float32 in [0, 1); 0 keeps all.
        backend: "auto" is triton on a GPU, naive elsewhere.

    Returns:
        `[B, N]` int64; 0 for padding.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend is unknown.
    """
    check_sampling(logits, positions, sizes, seeds, temperature, top_k, top_p, min_p)
    check_tensor("depths", depths, logits.shape[:2], INTEGERS, logits.device)
    if backend == "auto":
        backend = "triton" if prefers_triton(logits.device) else "naive"
    if backend == "naive" or logits.shape[0] == 0:
        return target_tokens_naive(logits, positions, depths, sizes, seeds, temperature, top_k, top_p, min_p)
    if backend == "triton":
        require_triton()
        from specdec.kernels.target_tokens.fused import target_tokens_fused

        return target_tokens_fused(logits, positions, depths, sizes, seeds, temperature, top_k, top_p, min_p)
    raise ValueError(f"backend must be auto, naive or triton, got {backend!r}")
