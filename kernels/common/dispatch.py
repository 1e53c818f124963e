"""Which backend `auto` stands for."""

import importlib.util
from functools import cache

import torch


@cache
def has_triton() -> bool:
    """Whether it is installed; nothing is imported."""
    return importlib.util.find_spec("triton") is not None


def prefers_triton(device: torch.device) -> bool:
    """On every GPU that has it."""
    return device.type != "cpu" and has_triton()


def require_triton() -> None:
    """Raises:
    ValueError: triton was asked for by name and is not installed.
    """
    if not has_triton():
        raise ValueError("backend 'triton' needs the package triton, which is not installed: pip install triton")
