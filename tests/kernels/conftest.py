"""Kernel tests: the Triton interpreter where there is no GPU, repaired before any kernel is decorated."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    from . import interpreter  # noqa: F401  the parent conftest has set TRITON_INTERPRET


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """The tensors here are small: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
