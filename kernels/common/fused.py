"""Bit arithmetic in Triton that its language lacks."""

import triton
import triton.language as tl


@triton.jit
def popcount(words):
    """Set bits of int64 words, any shape -> int32."""
    x = words.to(tl.uint64, bitcast=True)
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    x = x + (x >> 8)
    x = x + (x >> 16)
    return ((x + (x >> 32)) & 0x7F).to(tl.int32)
