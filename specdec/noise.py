"""Random numbers that are a pure function of (request seed, stream, absolute position, index).

The coupled rule and every drafter that shares its noise rest on this: the number for a token at a position is the same
whatever was drafted, batched or decoded before. A counter-based hash (the finaliser of MurmurHash3 over a Weyl
sequence, with a 64-bit key) is used instead of Philox: ten rounds over a vocabulary cost a CPU five times as much, and
32-bit integer operations give the same bits in torch and in Triton. It is not for cryptography.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

TARGET_STREAM = 0  # the target's draws, shared with drafters by the coupled rule
DRAFT_STREAM = 1  # a drafter's own draws
ACCEPT_STREAM = 2  # accept or reject
RESIDUAL_STREAM = 3  # draws from a residual distribution

_WEYL = 0x9E3779B9
_MULTIPLY_1 = 0x85EBCA6B
_MULTIPLY_2 = 0xC2B2AE35


def _int32(value: int) -> int:
    """The signed 32-bit integer with the low bits of `value`."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _mix(x: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser on int32 (multiplication wraps, shifts are made logical by a mask)."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * _int32(_MULTIPLY_1)
    x = (x ^ ((x >> 13) & 0x7FFFF)) * _int32(_MULTIPLY_2)
    return x ^ ((x >> 16) & 0xFFFF)


def seed_words(seeds: list[int], device: torch.device) -> Tensor:
    """Seeds of any size as two words each: `[2, B]` int32."""
    return torch.tensor(
        [[_int32(s) for s in seeds], [_int32(s >> 32) for s in seeds]], dtype=torch.int32, device=device
    )


def keys(seeds: Tensor, positions: Tensor, stream: int) -> Tensor:
    """A 64-bit key for every seed and position.

    Args:
        seeds: `[2, B]` int32.
        positions: `[B, M]` integer, absolute.
        stream: which use the numbers are for; streams are independent.

    Returns:
        `[2, B, M]` int32.
    """
    positions = positions.to(torch.int32)
    low = _mix(seeds[0, :, None] + positions * _int32(_WEYL) + _int32((stream + 1) * _MULTIPLY_1))
    high = _mix((seeds[1, :, None] ^ positions) * _int32(_MULTIPLY_2) + low)
    return torch.stack([low, high])


def uniform(keys: Tensor, count: int) -> Tensor:
    """Uniform numbers in (0, 1], `[..., count]` float32, for keys `[2, ...]`, in steps of 2**-31 near 0."""
    x = _counters(count, keys.device) + keys[0, ..., None]  # [..., count] int32
    x = x ^ ((x >> 16) & 0xFFFF)
    x.mul_(_int32(_MULTIPLY_1)).bitwise_xor_(keys[1, ..., None])
    x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF)).mul_(_int32(_MULTIPLY_2))
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).bitwise_and_(0x7FFFFFFF)
    return x.to(torch.float32).add_(0.5).mul_(2.0**-31)


def gumbel(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise, `[..., count]` float32, for keys `[2, ...]`.

    Small exponentials decide an argmax, so they are made from small uniforms, where float32 is finest: -log1p(-u).
    A u that rounds to 1 gives -inf, a token that is not drawn; it never gives +inf, one that always would be.
    """
    return uniform(keys, count).neg_().log1p_().neg_().log_().neg_()


@cache  # a CUDA graph may hold what it gives
def _counters(count: int, device: torch.device) -> Tensor:
    """`[count]` int32: a Weyl sequence over token ids."""
    return torch.arange(count, dtype=torch.int32, device=device) * _int32(_WEYL)
