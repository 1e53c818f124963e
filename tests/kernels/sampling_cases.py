"""Sampling settings of a batch, as the sampler's objects and as the kernels' tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from specdec import noise
from specdec.sampling import SamplingParams

SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.7, seed=2**40 + 2),
    SamplingParams(temperature=1.3, top_k=1, seed=3),
    SamplingParams(temperature=1.0, top_k=5, seed=-4),
    SamplingParams(temperature=0.9, top_p=0.83, seed=5),
    SamplingParams(temperature=1.7, top_p=0.31, seed=6),
    SamplingParams(temperature=2.0, min_p=0.07, seed=7),
    SamplingParams(temperature=1.1, top_k=40, top_p=0.9, min_p=0.02, seed=8),
    SamplingParams(temperature=3.0, top_k=2000, top_p=0.97, seed=9),
    SamplingParams(top_k=2, top_p=0.5, min_p=0.5, seed=10),
]


def settings_of(params: list[SamplingParams]) -> dict[str, Tensor]:
    """`seeds [2, B]`, `temperature`, `top_k`, `top_p` and `min_p` `[B]`, on the CPU."""
    return {
        "seeds": noise.seed_words([p.seed for p in params], torch.device("cpu")),
        "temperature": torch.tensor([p.temperature for p in params], dtype=torch.float32),
        "top_k": torch.tensor([p.top_k for p in params], dtype=torch.int32),
        "top_p": torch.tensor([p.top_p for p in params], dtype=torch.float32),
        "min_p": torch.tensor([p.min_p for p in params], dtype=torch.float32),
    }


@contextmanager
def stable_sort() -> Iterator[None]:
    """transformers' top-p leaves to an unstable sort which of equal tokens stay; the kernels promise a stable one."""
    sort = torch.sort
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "sort", lambda scores, **options: sort(scores, stable=True, **options))
        yield
