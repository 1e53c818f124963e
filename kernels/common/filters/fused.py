"""Which tokens of a row stay, found without sorting, and the best of them. One program reads the row block by block.

A cut is the greatest logit t of which {x >= t} has weight enough: k tokens, or the share top-p of the probability. It
is found by bisection on the ordered integers of floats. Every pass over the row also tells which logits lie next to the
one it tried, so the search moves from logit to logit and ends when one is left, mostly long before 32 passes.
Temperature keeps the order, so all of it reads raw logits: equal are logits that are equal before the division.
"""

import triton
import triton.language as tl

from specdec.kernels.common.fused import gumbel, ordered_float, ordered_integer

LOWEST = tl.constexpr(-(2**63))
LAST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def row_block(row, start, V, BLOCK: tl.constexpr):
    """Token ids int32 and logits float32 of a block; -inf behind the row's end."""
    v = start + tl.arange(0, BLOCK)
    return v, tl.load(row + v, mask=v < V, other=float("-inf")).to(tl.float32)


@triton.jit
def row_ends(row, V, BLOCK: tl.constexpr):
    """The smallest and the greatest logit, NaN aside."""
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in tl.range(0, V, BLOCK):
        v, x = row_block(row, start, V, BLOCK)
        low = tl.minimum(low, tl.where((x == x) & (v < V), x, float("inf")))
        high = tl.maximum(high, tl.where(x == x, x, float("-inf")))
    highest = tl.max(high, 0)
    return tl.minimum(tl.min(low, 0), highest), highest


@triton.jit
def find_cut(row, V, lowest, highest, wanted, rate, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The greatest logit t in [lowest, highest], both of the row, where {x >= t} weighs `wanted`, else `lowest`.

    A token weighs 1, or under MASS 2 ** ((x - highest) * rate).
    """
    low = ordered_integer(lowest).to(tl.int64)
    high = ordered_integer(highest).to(tl.int64)
    while low < high:
        middle = high - (high - low) // 2  # above low
        bound = ordered_float(middle.to(tl.int32))
        weight = tl.zeros([BLOCK], tl.float32)
        above = tl.full([BLOCK], float("inf"), tl.float32)
        below = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in tl.range(0, V, BLOCK):
            v, x = row_block(row, start, V, BLOCK)
            if MASS:
                weight += tl.where(x >= bound, tl.exp2((x - highest) * rate), 0.0)
            else:
                weight += tl.where(x >= bound, 1.0, 0.0)
            above = tl.minimum(above, tl.where(x >= bound, x, float("inf")))
            below = tl.maximum(below, tl.where(x < bound, x, float("-inf")))
        # the bounds make progress sure whatever the hardware does with -0.0 and subnormal numbers
        if tl.sum(weight, 0) >= wanted:
            low = tl.maximum(middle, ordered_integer(tl.min(above, 0)).to(tl.int64))
        else:
            high = tl.minimum(middle - 1, ordered_integer(tl.max(below, 0)).to(tl.int64))
    return ordered_float(low.to(tl.int32))


@triton.jit
def first_of_ties(row, V, cut, highest, wanted, rate, BLOCK: tl.constexpr):
    """Of the tokens whose logit is `cut`, the id from which they stay, so that what stays just weighs `wanted`."""
    over = tl.zeros([BLOCK], tl.float32)
    ties = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, V, BLOCK):
        v, x = row_block(row, start, V, BLOCK)
        over += tl.where(x > cut, tl.exp2((x - highest) * rate), 0.0)
        ties += ((x == cut) & (v < V)).to(tl.int32)
    count = tl.sum(ties, 0)
    room = tl.ceil((wanted - tl.sum(over, 0)) / tl.exp2((cut - highest) * rate))
    room = tl.where(room < 1.0, 1.0, tl.where(room < count, room, count.to(tl.float32)))  # NaN: all stay
    leaving = count - room.to(tl.int32)
    first = 0
    if leaving > 0:
        seen = 0
        found = tl.full([BLOCK], LAST, tl.int32)
        for start in tl.range(0, V, BLOCK):
            v, x = row_block(row, start, V, BLOCK)
            tie = ((x == cut) & (v < V)).to(tl.int32)
            rank = seen + tl.cumsum(tie, 0)
            found = tl.minimum(found, tl.where((tie != 0) & (rank > leaving), v, LAST))
            seen += tl.sum(tie, 0)
        first = tl.min(found, 0)
    return first


@triton.jit
def row_filter(row, V, lowest, highest, temperature, top_k, top_p, min_p, BLOCK: tl.constexpr):
    """(cut, first): a token stays if its logit is above `cut`, or is `cut` and its id at least `first`.

    `lowest` and `highest` are what `row_ends` says; `temperature` is above 0.
    """
    rate = 1.4426950408889634 / temperature  # exp2(x * rate) is exp(x / temperature)
    cut = lowest
    first = 0
    if (top_k > 0) & (top_k < V):
        cut = find_cut(row, V, cut, highest, top_k.to(tl.float32), rate, False, BLOCK)
    if top_p < 1:
        mass = tl.zeros([BLOCK], tl.float32)
        for start in tl.range(0, V, BLOCK):
            v, x = row_block(row, start, V, BLOCK)
            mass += tl.where(x >= cut, tl.exp2((x - highest) * rate), 0.0)
        wanted = top_p * tl.sum(mass, 0)
        cut = find_cut(row, V, cut, highest, wanted, rate, True, BLOCK)
        first = first_of_ties(row, V, cut, highest, wanted, rate, BLOCK)
    if min_p > 0:
        bound = highest + tl.log(min_p) * temperature
        if bound > cut:
            cut = bound
            first = 0
    return cut, first


@triton.jit
def stays(v, x, V, cut, first):
    """Whether a token stays; NaN always does."""
    return (v < V) & ((x > cut) | ((x == cut) & (v >= first)) | (x != x))


@triton.jit
def best_token(row, V, temperature, cut, first, filtered, sampled, low, high, LOG: tl.constexpr, BLOCK: tl.constexpr):
    """The token of the greatest score (if `sampled`: plus Gumbel noise of key `low`, `high`) among those that stay.

    The first of equals; the first NaN where there is one; token 0 if all scores are -inf. `filtered` says that few
    tokens may stay: blocks without any are then skipped. Under LOG the row holds probabilities, not logits.
    """
    inverse = 1.0 / temperature
    # order and id in one integer: the greatest is the best token, the lowest id of equals
    lowest = ordered_integer(tl.full([BLOCK], float("-inf"), tl.float32)).to(tl.int64)
    best = (lowest << 32) | LAST
    for start in tl.range(0, V, BLOCK):
        v, x = row_block(row, start, V, BLOCK)
        if LOG:
            x = tl.log(tl.where(v < V, x, 0.0))
        kept = stays(v, x, V, cut, first)
        busy = 1
        if filtered:
            busy = tl.max(kept.to(tl.int32), 0)
        if busy != 0:
            score = x * inverse
            if sampled:
                score += gumbel(low, high, v)
            order = tl.where(score == score, ordered_integer(score + 0.0), LAST).to(tl.int64)  # + 0.0: -0.0 is 0.0
            best = tl.maximum(best, tl.where(kept, (order << 32) | (LAST - v), LOWEST))
    return LAST - (tl.max(best, 0) & LAST)
