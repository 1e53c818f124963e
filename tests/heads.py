"""Random heads for drafters that have one: the zoo's are not needed where nothing has to be drafted well."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from specdec.target import Target


def make_head(drafter: str, target: Target, seed: int = 0, **settings: Any) -> Any:
    """A head of `drafters/<drafter>_head.py`, in the target's dtype, every weight moved off where it begins.

    Args:
        settings: of the head's `new`.
    """
    module = importlib.import_module(f"specdec.drafters.{drafter}_head")
    classes = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__]
    kind: Any = next(x for x in classes if hasattr(x, "new"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = kind.new(target, **settings)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return head.to(target.model.dtype)
