"""The first tokens of many texts after one prompt against their joint distribution, computed by plain forwards."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..chance import g_test
from .places import processed

ALARM = 1e-8  # how often a test may fail by chance
PROMPT = [3, 1, 4]


def exact_joint(model: PreTrainedModel, prompt: Sequence[int], settings: Mapping[str, float], length: int) -> Tensor:
    """`[V] * length` float64."""
    size: int = model.config.vocab_size
    joint = torch.ones((size,) * length, dtype=torch.float64)
    for known in range(length):
        texts = torch.tensor([[*prompt, *begun] for begun in itertools.product(range(size), repeat=known)])
        with torch.inference_mode():
            logits = model(texts).logits[:, -1].double()
        seen = torch.nn.functional.one_hot(texts, size).sum(1) > 0
        following = processed(logits, seen, settings)  # [V ** known, V]
        joint *= following.view((size,) * (known + 1) + (1,) * (length - known - 1))
    return joint


def agreement(drawn: Tensor, joint: Tensor) -> float:
    """Probability of texts `[draws, length]` at least as far from `joint` by chance.

    The tokens are tested together, in neighbouring pairs and so on, and one by one, but for the first, which is not
    drafted: a bias that is spread over the whole joint shows best in a margin. The least of the probabilities, times
    their number (Bonferroni).
    """
    length, size = joint.dim(), joint.shape[0]
    flat = (drawn * size ** torch.arange(length - 1, -1, -1)).sum(1)
    counts = flat.bincount(minlength=size**length).view(joint.shape)
    runs = [(low, high) for high in range(2, length + 1) for low in range(high)]
    others = [tuple(i for i in range(length) if not low <= i < high) for low, high in runs]  # summed out
    return len(others) * min(g_test(counts.sum(o), joint.sum(o)) if o else g_test(counts, joint) for o in others)
