"""The weights that inductor has packed into graphs: each is kept once, and none longer than its graphs."""

from __future__ import annotations

import ctypes
import gc
import hashlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from transformers import PreTrainedModel


def fingerprint(model: PreTrainedModel) -> tuple[object, ...]:
    """Changes when a weight is replaced or written to."""
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors)


def share(modules: Sequence[ModuleType], known: dict[bytes, Tensor]) -> None:
    """Weights that an earlier graph has packed the same way are put in place of those in `modules`.

    Every graph packs for itself. Whoever holds one of these tensors (the module, inductor's table of constants) holds
    it in a dictionary.
    """
    twins: dict[int, tuple[Tensor, Tensor]] = {}  # by id: a packed weight, and the known one with the same bytes
    for value in [x for m in modules for x in vars(m).values()]:
        if isinstance(value, Tensor) and value.is_mkldnn:
            same = known.setdefault(_digest(value), value)
            if same is not value:
                twins[id(value)] = (value, same)
    if not twins:
        return
    for holder in gc.get_referrers(*(mine for mine, _ in twins.values())):
        if isinstance(holder, dict):
            for name, value in list(holder.items()):
                if isinstance(value, Tensor) and id(value) in twins and isinstance(name, str):
                    holder[name] = twins[id(value)][1]


def _digest(weight: Tensor) -> bytes:
    """Of a packed weight's layout and bytes."""
    count = torch.ops.mkldnn._nbytes(weight)
    digest = hashlib.sha256(torch.ops.mkldnn._get_mkldnn_serialized_md(weight).numpy().tobytes())
    digest.update((ctypes.c_char * count).from_address(torch.ops.mkldnn.data_ptr(weight)))
    return digest.digest()


def forget(modules: Sequence[ModuleType]) -> None:
    """A graph is gone; torch keeps the modules of its code for good, but their weights need not stay."""
    for module in modules:
        for name in [name for name, value in vars(module).items() if isinstance(value, Tensor)]:
            delattr(module, name)
