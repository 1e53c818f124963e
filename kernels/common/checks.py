"""Argument checks of the kernels that sample."""

import torch
from torch import Tensor

INTEGERS = (torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Refuse another shape, dtype or device.

    Raises:
        ValueError: naming the argument, what it is and what is expected.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must be {expected}, got {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of logits, {device}, got {tensor.device}")


def check_sampling(
    logits: Tensor,  # [B, N, V]
    positions: Tensor,  # [B]
    sizes: Tensor,  # [B]
    seeds: Tensor,  # [2, B]
    temperature: Tensor,  # [B]
    top_k: Tensor,  # [B]
    top_p: Tensor,  # [B]
    min_p: Tensor,  # [B]
) -> None:
    """Refuse logits of no vocabulary, and per-sequence arguments that do not fit them.

    Raises:
        ValueError: naming the argument, what it is and what is expected.
    """
    if logits.dim() != 3 or logits.shape[1] == 0 or logits.shape[2] == 0:
        raise ValueError(f"logits must be [B, N, V] with N > 0 and V > 0, got {list(logits.shape)}")
    batch, nodes, vocab = logits.shape
    check_tensor("logits", logits, (batch, nodes, vocab), FLOATS, logits.device)
    if logits.stride(2) != 1:
        raise ValueError(f"logits must be contiguous in V, got strides {logits.stride()}")
    for name, tensor in (("positions", positions), ("sizes", sizes), ("top_k", top_k)):
        check_tensor(name, tensor, (batch,), INTEGERS, logits.device)
    check_tensor("seeds", seeds, (2, batch), (torch.int32,), logits.device)
    for name, tensor in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        check_tensor(name, tensor, (batch,), (torch.float32,), logits.device)
