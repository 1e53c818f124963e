"""transformers' warpers with settings that are tensors, one a row: temperature, top-k, top-p, min-p."""

import torch
from torch import Tensor


def filter_rows(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Scores `[..., V]` float32, -inf where a token is ruled out.

    Of equal scores at the cut of top-k all stay; at the cut of top-p those with the higher ids stay, as under a stable
    ascending sort. NaN is ruled out by nothing.

    Args:
        logits: `[..., V]`.
        temperature: `[...]` float32; 0 rules out nothing.
        top_k: `[...]` integer, 0 is off.
        top_p, min_p: `[...]` float32, 1 and 0 are off.
    """
    vocab = logits.shape[-1]
    sampled = (temperature > 0)[..., None]  # [..., 1]
    scores = logits.float() / torch.where(sampled, temperature[..., None], 1.0)
    kept = torch.ones_like(scores, dtype=torch.bool)

    top_k = top_k[..., None].long()
    cut = scores.sort(-1, descending=True).values.gather(-1, top_k.clamp(1, vocab) - 1)  # [..., 1] the k-th
    kept &= ~(scores < cut) | (top_k <= 0)

    ascending, order = scores.masked_fill(~kept, float("-inf")).sort(dim=-1, stable=True)
    tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p[..., None]
    tail[..., -1] = False  # one always stays
    kept &= ~torch.zeros_like(tail).scatter(-1, order, tail) | (top_p[..., None] >= 1)

    probs = scores.masked_fill(~kept, float("-inf")).softmax(-1)
    kept &= ~(probs < min_p[..., None] * probs.amax(-1, keepdim=True))
    return torch.where(kept | ~sampled, scores, float("-inf"))
