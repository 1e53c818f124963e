"""What holds for every test: no network, the Triton interpreter where there is no GPU, poisoned memory, fixed seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

# Before anything is imported that reads them.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # `triton.jit` reads it when it decorates, so it must be set before the first import of triton, ours or another's.
    os.environ["TRITON_INTERPRET"] = "1"

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # one process a core: more threads would only fight for them
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

settings.register_profile("specdec", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("specdec")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m gpu` on a machine without one skips with a reason instead of failing."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many texts were compared with plain decoding's in float64 and float32, and where rounding decided one."""
    kept = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    compared, ties = (sum(int(k.get(name, 0)) for k in kept) for name in ("compared texts", "ties"))
    if compared:
        terminalreporter.write_line(f"{compared} texts are those of plain decoding, but for {ties} ties in float32")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`make`, its memory filled with NaN (integers: with their greatest value) instead of whatever was there."""

    @wraps(make)
    def make_and_fill(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        if torch.compiler.is_compiling():
            return tensor
        if tensor.is_floating_point():
            return tensor.detach().fill_(float("nan")).requires_grad_(tensor.requires_grad)
        if tensor.dtype in (torch.int16, torch.int32, torch.int64):
            return tensor.fill_(torch.iinfo(tensor.dtype).max)
        return tensor

    return make_and_fill


@pytest.fixture(scope="session", autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Whoever reads what nobody wrote finds NaN or an index out of range, not zeros by luck."""
    with torch.device("cpu"):
        torch.empty(0)  # torch now remembers the unpatched functions as those that `with torch.device(...)` governs
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            patch.setattr(owner, name, _poisoned(getattr(owner, name)))
        yield
