"""Tree attention in Triton: split-KV over work items that a one-block plan kernel lays out on the device.

A work item is a block of BLOCK_M packed rows (tree rows times the query heads of one KV head) and one chunk of its
sequence's slots. Items of a sequence are numbered chunk by chunk, row blocks innermost, so that blocks which read the
same keys run together. Masks are ancestor words, read only by tiles that reach past the context.
"""

import triton
import triton.language as tl

from specdec.kernels.common.fused import popcount

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sequence_of(starts, index, batch, LOG2_B: tl.constexpr):
    """The last b in 0 .. batch - 1 with starts[b] <= index. starts `[batch + 1]` ascending."""
    low = 0
    high = batch
    for _ in tl.static_range(LOG2_B):
        middle = (low + high) // 2
        right = tl.load(starts + middle) <= index
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    return low


@triton.jit
def _first_slot(context, window, ALIGN: tl.constexpr, WINDOW: tl.constexpr):
    """A multiple of ALIGN at or before the first slot that any row sees; padding rows stand at context - 1."""
    first = context * 0
    if WINDOW:
        first = tl.maximum(context - window, 0) // ALIGN * ALIGN
    return first


@triton.jit(do_not_specialize=["batch", "target", "window"])
def tree_attention_plan_kernel(
    row_starts,  # [B + 1]
    context_lens,  # [B]
    tree_sizes,  # [B]
    items,  # [B + 1] out: first work item of every sequence
    chunk,  # [1] out: slots of a chunk
    batch,
    target,  # work items a KV head should have, for a balanced grid
    window,
    G: tl.constexpr,
    CHUNK: tl.constexpr,  # smallest chunk; FIXED: the chunk
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    FIXED: tl.constexpr,
    WINDOW: tl.constexpr,
):
    b = tl.arange(0, BLOCK_B)
    live = b < batch
    rows = tl.load(row_starts + b + 1, mask=live, other=0) - tl.load(row_starts + b, mask=live, other=0)
    context = tl.load(context_lens + b, mask=live, other=0)
    size = tl.load(tree_sizes + b, mask=live, other=0)
    first = _first_slot(context, window, CHUNK if FIXED else BLOCK_N, WINDOW)
    slots = context + size - first  # [BLOCK_B]
    blocks = tl.cdiv(rows * G, BLOCK_M)  # [BLOCK_B]
    if FIXED:
        length = tl.full((), CHUNK, tl.int32)
    else:
        work = tl.sum(blocks.to(tl.int64) * slots, 0)
        length = (tl.cdiv(tl.cdiv(work, target), BLOCK_N) * BLOCK_N).to(tl.int32)
        length = tl.maximum(length, CHUNK)
    chunks = tl.maximum(tl.cdiv(slots, length), 1)  # rows without any slot have an item as well, which writes their 0
    count = tl.where(live & (rows > 0), blocks * chunks, 0)
    tl.store(items + 1 + b, tl.cumsum(count, 0), mask=live)
    tl.store(items, 0)
    tl.store(chunk, length)


@triton.jit
def _tree_visible(row_words, distance, rows_ok, n, W: tl.constexpr, BLOCK_M: tl.constexpr):
    """Bits distance .. distance + 63 of every row's words; negative bits, the context, are set -> `[BLOCK_M, N]`."""
    word = distance >> 6  # floor; word -1 stands for the context
    shift = (tl.zeros([BLOCK_M], tl.int32) + (distance & 63)).to(tl.uint64)
    low = tl.load(row_words + word, mask=rows_ok & (word >= 0) & (word < W), other=0).to(tl.uint64, bitcast=True)
    low = tl.where(word < 0, tl.full([BLOCK_M], 0xFFFFFFFFFFFFFFFF, tl.uint64), low)
    high = tl.load(row_words + word + 1, mask=rows_ok & (word + 1 >= 0) & (word + 1 < W), other=0)
    high = high.to(tl.uint64, bitcast=True)
    high = tl.where(word + 1 < 0, tl.full([BLOCK_M], 0xFFFFFFFFFFFFFFFF, tl.uint64), high)
    bits = (low >> shift) | tl.where(shift > 0, high << ((64 - shift) & 63), 0)
    left, right = (bits & 0xFFFFFFFF).to(tl.uint32), (bits >> 32).to(tl.uint32)
    half = tl.where(n[None, :] < 32, left[:, None], right[:, None])
    return ((half >> (n[None, :] & 31).to(tl.uint32)) & 1) != 0


@triton.jit
def _visible_before(words, distance, w):
    """Visible nodes with an index below distance. words `[BLOCK_M, W2]`, w = arange(W2) -> `[BLOCK_M]` int32."""
    count = tl.minimum(tl.maximum(distance - w * 64, 0), 64)  # [W2] bits of this word that count
    below = (tl.full(count.shape, 1, tl.int64) << (count & 63).to(tl.int64)) - 1
    below = tl.where(count == 64, -1, below)
    return tl.sum(popcount(words & below[None, :]), 1)


@triton.jit(do_not_specialize=["batch", "window"])
def tree_attention_split_kernel(
    Q,  # [R, Hq, D]
    K,  # [pages, Hkv, PAGE, D]
    V,  # [pages, Hkv, PAGE, DV]
    Out,  # [R, Hq, DV]
    Part,  # [items, Hkv, BLOCK_M, DV] float32
    Lse,  # [items, Hkv, BLOCK_M] float32, base 2
    Words,  # [R, W]; not read if CAUSAL
    Table,  # [B, P]
    row_starts,
    context_lens,
    tree_sizes,
    items,
    chunk,
    Sinks,  # [Hq]; not read unless SINKS
    batch,
    window,
    scale,
    softcap,
    stride_qr,
    stride_qh,
    stride_kp,
    stride_kh,
    stride_kn,
    stride_vp,
    stride_vh,
    stride_vn,
    stride_or,
    stride_oh,
    stride_table,
    stride_words,
    W: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_W: tl.constexpr,
    LOG2_B: tl.constexpr,
    ALIGN: tl.constexpr,  # what the first slot is rounded down to: the chunk if fixed, else BLOCK_N
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    NODE_WINDOW: tl.constexpr,  # the window may be shorter than a path of the tree
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    item = tl.program_id(0)
    head = tl.program_id(1)
    kv_head = head.to(tl.int64)
    if item >= tl.load(items + batch):
        return
    b = _sequence_of(items, item, batch, LOG2_B)
    row0 = tl.load(row_starts + b)
    rows = tl.load(row_starts + b + 1) - row0
    context = tl.load(context_lens + b)
    size = tl.load(tree_sizes + b)
    item0 = tl.load(items + b)
    blocks = tl.cdiv(rows * G, BLOCK_M)
    chunks = (tl.load(items + b + 1) - item0) // blocks
    block = (item - item0) % blocks
    length = tl.load(chunk)
    start = _first_slot(context, window, ALIGN, WINDOW) + (item - item0) // blocks * length
    total = context + size
    end = tl.minimum(start + length, total)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    local = (block * BLOCK_M + m) // G  # [BLOCK_M] row of the sequence
    q_head = head * G + (block * BLOCK_M + m) % G
    rows_ok = local < rows
    row = (row0 + local).to(tl.int64)
    q_mask = rows_ok[:, None]
    if D != BLOCK_D:
        q_mask = q_mask & (d[None, :] < D)
    q = tl.load(Q + row[:, None] * stride_qr + q_head[:, None] * stride_qh + d[None, :], mask=q_mask, other=0.0)

    row_words = Words + row * stride_words
    if CAUSAL:  # the newest node a row sees; -1 for padding
        newest = tl.maximum(size - rows, 0) + local
        newest = tl.where(newest < size, newest, -1)
        position = context + newest  # [BLOCK_M]
        end = tl.minimum(end, context + tl.max(tl.where(rows_ok, newest, -1), 0) + 1)
    elif WINDOW:
        w = tl.arange(0, BLOCK_W)
        words = tl.load(row_words[:, None] + w[None, :], mask=rows_ok[:, None] & (w[None, :] < W), other=0)
        visible = tl.sum(popcount(words), 1)  # [BLOCK_M]
        position = context + visible - 1

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)  # running maximum, base 2
    norm = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    table = Table + b * stride_table
    for slot0 in tl.range(start, end, BLOCK_N):
        slot = tl.minimum(slot0 + n, end - 1)  # no read past the last slot, of which no row sees copies
        if PAGE % BLOCK_N == 0:  # one page a tile
            page = tl.load(table + slot0 // PAGE).to(tl.int64)
            inside = slot - slot0 // PAGE * PAGE
            k_rows = K + page * stride_kp + kv_head * stride_kh + inside * stride_kn
            v_rows = V + page * stride_vp + kv_head * stride_vh + inside * stride_vn
        else:
            pages = tl.load(table + slot // PAGE).to(tl.int64)
            k_rows = K + pages * stride_kp + kv_head * stride_kh + slot % PAGE * stride_kn
            v_rows = V + pages * stride_vp + kv_head * stride_vh + slot % PAGE * stride_vn
        if D == BLOCK_D:
            k = tl.load(k_rows[None, :] + d[:, None])  # [BLOCK_D, BLOCK_N]
        else:
            k = tl.load(k_rows[None, :] + d[:, None], mask=d[:, None] < D, other=0.0)
        if DV == BLOCK_DV:
            v = tl.load(v_rows[:, None] + dv[None, :])  # [BLOCK_N, BLOCK_DV]
        else:
            v = tl.load(v_rows[:, None] + dv[None, :], mask=dv[None, :] < DV, other=0.0)
        scores = tl.dot(q, k.to(q.dtype), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N] float32
        if SOFTCAP:
            x = scores * (scale / softcap)
            decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
            tanh = (1.0 - decay) / (1.0 + decay)
            scores = tl.where(x < 0, -tanh, tanh) * (softcap * LOG2E)
        else:
            scores = scores * (scale * LOG2E)

        if slot0 + BLOCK_N > tl.minimum(context, end):  # a tile of nodes: whole tiles of context skip this
            distance = slot0 - context
            if CAUSAL:
                seen = (distance + n)[None, :] <= newest[:, None]
            else:
                seen = _tree_visible(row_words, distance, rows_ok, n, W, BLOCK_M)
                if NODE_WINDOW:
                    is_node = (distance + n >= 0)[None, :]
                    rank = tl.cumsum((seen & is_node).to(tl.int32), 1) + _visible_before(words, distance, w)[:, None]
                    seen = seen & ((visible[:, None] - rank < window) | (distance + n < 0)[None, :])
            scores = tl.where(seen, scores, float("-inf"))
        if WINDOW and slot0 + window < total:  # a tile with slots that have left some row's window
            near = (slot0 + n)[None, :] > (position - window)[:, None]
            if not CAUSAL:
                near = near | (slot0 + n >= context)[None, :]
            scores = tl.where(near, scores, float("-inf"))

        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen nothing yet
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        norm = norm * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION)
        top = new_top

    out_mask = rows_ok[:, None]
    if DV != BLOCK_DV:
        out_mask = out_mask & (dv[None, :] < DV)
    if chunks == 1:  # nothing to merge
        if SINKS:
            sink = tl.load(Sinks + q_head, mask=rows_ok, other=0.0).to(tl.float32) * LOG2E
            new_top = tl.maximum(top, sink)
            shrink = tl.exp2(top - new_top)
            norm = norm * shrink + tl.exp2(sink - new_top)
            acc = acc * shrink[:, None]
        acc = acc / tl.where(norm > 0, norm, 1.0)[:, None]  # a row that sees nothing gives 0
        out = Out + row[:, None] * stride_or + q_head[:, None] * stride_oh + dv[None, :]
        tl.store(out, acc.to(Out.dtype.element_ty), mask=out_mask)
    else:
        safe = tl.where(norm > 0, norm, 1.0)
        base_row = (item.to(tl.int64) * tl.num_programs(1) + head) * BLOCK_M + m
        tl.store(Part + base_row[:, None] * DV + dv[None, :], acc / safe[:, None], mask=out_mask)
        tl.store(Lse + base_row, tl.where(norm > 0, top + tl.log2(safe), float("-inf")), mask=rows_ok)


@triton.jit(do_not_specialize=["batch"])
def tree_attention_combine_kernel(
    Out,  # [R, Hq, DV]
    Part,  # [items, Hkv, BLOCK_M, DV]
    Lse,  # [items, Hkv, BLOCK_M]
    row_starts,
    items,
    Sinks,
    batch,
    heads,  # Hkv
    stride_or,
    stride_oh,
    G: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LOG2_B: tl.constexpr,
    SINKS: tl.constexpr,
):
    row = tl.program_id(0)
    q_head = tl.program_id(1)
    dv = tl.arange(0, BLOCK_DV)
    out = Out + row.to(tl.int64) * stride_or + q_head * stride_oh + dv
    if row >= tl.load(row_starts + batch):  # a row of no sequence
        tl.store(out, tl.zeros([BLOCK_DV], Out.dtype.element_ty), mask=dv < DV)
        return
    b = _sequence_of(row_starts, row, batch, LOG2_B)
    row0 = tl.load(row_starts + b)
    blocks = tl.cdiv((tl.load(row_starts + b + 1) - row0) * G, BLOCK_M)
    item0 = tl.load(items + b)
    chunks = (tl.load(items + b + 1) - item0) // blocks
    if chunks <= 1:
        return
    place = (row - row0) * G + q_head % G
    first = item0 + place // BLOCK_M
    top = tl.full((), float("-inf"), tl.float32)
    norm = tl.full((), 0.0, tl.float32)
    acc = tl.zeros([BLOCK_DV], tl.float32)
    if SINKS:
        top = tl.load(Sinks + q_head).to(tl.float32) * LOG2E
        norm = tl.full((), 1.0, tl.float32)
    for c in tl.range(0, chunks):  # in order: deterministic
        item = tl.full((), 0, tl.int64) + first + c * blocks
        base_row = (item * heads + q_head // G) * BLOCK_M + place % BLOCK_M
        lse = tl.load(Lse + base_row)
        part = tl.load(Part + base_row * DV + dv, mask=dv < DV, other=0.0)
        new_top = tl.maximum(top, lse)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - base)
        weight = tl.exp2(lse - base)
        acc = acc * shrink + part * weight
        norm = norm * shrink + weight
        top = new_top
    acc = acc / tl.where(norm > 0, norm, 1.0)
    tl.store(out, acc.to(Out.dtype.element_ty), mask=dv < DV)
