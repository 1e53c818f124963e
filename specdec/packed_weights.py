"""The weights that inductor has packed into graphs: each is kept once, and none longer than its graphs."""

from __future__ import annotations

import ctypes
import gc
import hashlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def fingerprint(model: PreTrainedModel) -> tuple[object, ...]:
    """Changes when a weight is replaced or written to."""
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors)


def share(modules: Sequence[ModuleType], model: PreTrainedModel, known: dict[bytes, Tensor]) -> None:
    """Weights that an earlier graph has packed the same way are put in place of those in `modules`.

    Every graph packs for itself. Whoever holds one of these tensors (the module, inductor's table of constants) holds
    it in a dictionary.
    """
    own = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
    twins: dict[int, tuple[Tensor, Tensor]] = {}  # by id: a packed weight, and the known one with the same bytes
    for value in [x for m in modules for x in vars(m).values()]:
        if isinstance(value, Tensor) and (value.is_mkldnn or value.untyped_storage().data_ptr() not in own):
            same = known.setdefault(_digest(value), value)
            if same is not value:
                twins[id(value)] = (value, same)
    for holder, name in _held([mine for mine, _ in twins.values()]):
        holder[name] = twins[id(holder[name])][1]


def _held(weights: Sequence[Tensor]) -> list[tuple[dict[str, Any], str]]:
    """Every dictionary, and the name in it, that holds one of them."""
    ids = set(map(id, weights))
    holders = [x for x in gc.get_referrers(*weights) if isinstance(x, dict)] if weights else []
    return [(x, name) for x in holders for name, value in list(x.items()) if id(value) in ids and isinstance(name, str)]


def _digest(weight: Tensor) -> bytes:
    """Of a packed weight's layout and bytes."""
    if not weight.is_mkldnn:
        digest = hashlib.sha256(repr((weight.dtype, weight.shape, weight.stride())).encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().data)
        return digest.digest()
    count = torch.ops.mkldnn._nbytes(weight)
    digest = hashlib.sha256(torch.ops.mkldnn._get_mkldnn_serialized_md(weight).numpy().tobytes())
    digest.update((ctypes.c_char * count).from_address(torch.ops.mkldnn.data_ptr(weight)))
    return digest.digest()


def forget(modules: Sequence[ModuleType], packed: Mapping[bytes, Tensor]) -> None:
    """A graph is gone, and so will be the others that share its packed weights; torch keeps the modules of its code,
    and tables of constants, for good, but the weights need not stay."""
    for module in modules:
        for name in [name for name, value in vars(module).items() if isinstance(value, Tensor)]:
            delattr(module, name)
    for holder, name in _held(list(packed.values())):
        del holder[name]
