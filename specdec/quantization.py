"""Weights in fewer bits, through torchao: each of a linear layer's takes 8 or 4 bits and is unpacked as it is used.

Weights only: activations, embedding, LM head and KV stay as they are. What comes out is another model, and lossless
means lossless with respect to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

KINDS = ("int8", "int4")
GROUP = 128  # weights that share a scale in int4; layers of another width stay as they are
EXTRA = 'pip install "specdec[quant]"'


def check(kind: str, device: torch.device) -> None:
    """Refuse what cannot work, before anything is loaded. `kind` is one of KINDS.

    Raises:
        ValueError: torchao is not installed, or has no kernel for 4 bits on that device.
    """
    if find_spec("torchao") is None:
        raise ValueError(f"quantize={kind!r} needs the package torchao: {EXTRA}")
    if kind == "int4" and (device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8):
        raise ValueError(
            f"quantize='int4' needs an NVIDIA GPU of compute capability 8.0 or more; the device is {device}. "
            "Use quantize='int8', or another device"
        )


def quantize(model: PreTrainedModel, kind: str, device: torch.device) -> None:
    """Replace the weights of the linear layers, but for the LM head, layer by layer on `device`.

    Raises:
        ValueError: the model's dtype is not one that torchao takes, or it has no such layers.
    """
    fitting = (torch.bfloat16,) if kind == "int4" else (torch.bfloat16, torch.float16, torch.float32)
    if model.dtype not in fitting:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in fitting)
        raise ValueError(f"quantize={kind!r} takes a model in {known}, not {model.dtype}; set dtype")
    with _quiet():
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

        config: Any = Int8WeightOnlyConfig(set_inductor_config=False)
        if kind == "int4":
            config = Int4WeightOnlyConfig(GROUP, set_inductor_config=False, int4_packing_format="tile_packed_to_4d")
        head = model.get_output_embeddings()

        def chosen(module: nn.Module, name: str) -> bool:
            fits = isinstance(module, nn.Linear) and (kind == "int8" or module.in_features % GROUP == 0)
            return fits and module is not head

        if not any(chosen(module, name) for name, module in model.named_modules()):
            raise ValueError(f"{type(model).__name__} has no linear layers that can be packed as {kind}")
        quantize_(model, config, filter_fn=chosen, device=device)


def stored_bytes(weight: Tensor) -> int:
    """What a weight takes in memory: the parts of a packed one together."""
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.numel() * weight.element_size()
    parts = (getattr(weight, name) for name in weight.__tensor_flatten__()[0])
    return sum(stored_bytes(part) for part in parts if isinstance(part, Tensor))


@contextmanager
def _quiet() -> Iterator[None]:
    """torchao tells at import which of its extensions it goes without."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
