"""The target's own token at every node: the Gumbel-argmax of its processed row (Maddison et al., arXiv 1411.0030)."""

import torch
from torch import Tensor

from specdec import noise
from specdec.kernels.common.filters.naive import filter_rows


def target_tokens_naive(
    logits: Tensor,
    positions: Tensor,
    depths: Tensor,
    sizes: Tensor,
    seeds: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
) -> Tensor:
    """See `specdec.kernels.target_tokens.target_tokens`. Reads nothing to the host."""
    nodes, vocab = logits.shape[1:]
    settings = (setting[:, None].expand(-1, nodes) for setting in (temperature, top_k, top_p, min_p))
    scores = filter_rows(logits, *settings)  # [B, N, V]
    keys = noise.keys(seeds, positions[:, None] + depths + 1, noise.TARGET_STREAM)  # [2, B, N]
    perturbed = scores + noise.gumbel(keys, vocab)
    tokens = torch.where(temperature[:, None, None] > 0, perturbed, scores).argmax(-1)
    live = torch.arange(nodes, device=logits.device) < sizes[:, None]  # [B, N]
    return torch.where(live, tokens, 0)
