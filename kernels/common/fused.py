"""What Triton's language lacks and several kernels need: bit arithmetic, ordered integers of floats, the noise."""

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


@triton.jit
def ordered_integer(x):
    """float32 -> int32 in the same order. NaN lies beyond both infinities, on the side of its sign."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def ordered_float(key):
    """The float32 of an `ordered_integer`."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def mix(x):
    """`specdec.noise._mix`, on uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def noise_key(seeds, B, b, position, STREAM: tl.constexpr):
    """`specdec.noise.keys` for sequence `b` of `seeds` `[2, B]` int32 -> two uint32."""
    place = position.to(tl.int32).to(tl.uint32, bitcast=True)
    first = tl.load(seeds + b).to(tl.uint32, bitcast=True)
    second = tl.load(seeds + B + b).to(tl.uint32, bitcast=True)
    low = mix(first + place * 0x9E3779B9 + (((STREAM + 1) * 0x85EBCA6B) & 0xFFFFFFFF))
    return low, mix((second ^ place) * 0xC2B2AE35 + low)


@triton.jit
def uniform(low, high, index):
    """`specdec.noise.uniform` at int32 `index`, any shape -> float32 in (0, 1], the same bits."""
    x = index.to(tl.uint32, bitcast=True) * 0x9E3779B9 + low
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = x ^ high
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    x = (x ^ (x >> 16)) & 0x7FFFFFFF
    return (x.to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2**-31


@triton.jit
def gumbel(low, high, index):
    """`specdec.noise.gumbel` at int32 `index`: the same uniforms, logarithms within a few roundings."""
    u = uniform(low, high, index)
    # log1p(-u): the quotient takes back what rounding did to 1 - u
    rest = 1.0 - u
    lost = rest - 1.0
    log1p = tl.where(lost == 0.0, -u, tl.log(rest) * (-u / tl.where(lost == 0.0, 1.0, lost)))
    return -tl.log(-log1p)
