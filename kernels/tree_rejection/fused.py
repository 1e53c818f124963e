"""Recursive rejection in one launch: one program a tree, which reads only the rows on its way down."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.common.filters.fused import best_token, row_ends, row_filter, stays
from specdec.kernels.common.fused import noise_key, uniform

BLOCK = 2048  # tokens read at a time; with so many warps all fits the registers, not measured yet
WARPS = 16


@triton.jit
def write_target(row, target, V, heat, top_k, top_p, min_p, BLOCK: tl.constexpr):
    """The target's distribution for a row of logits: `target` `[V]` float32."""
    sampled = heat > 0
    divisor = tl.where(sampled, heat, 1.0)
    lowest, highest = row_ends(row, V, BLOCK)
    total = 1.0
    cut = lowest
    first = 0
    token = tl.full((), 0, tl.int64)
    if sampled:
        cut, first = row_filter(row, V, lowest, highest, divisor, top_k, top_p, min_p, BLOCK)
        mass = tl.zeros([BLOCK], tl.float32)
        for start in tl.range(0, V, BLOCK):
            v = start + tl.arange(0, BLOCK)
            x = tl.load(row + v, mask=v < V, other=float("-inf")).to(tl.float32)
            mass += tl.where(stays(v, x, V, cut, first), tl.exp((x - highest) / divisor), 0.0)
        total = tl.sum(mass, 0)
    else:
        token = best_token(row, V, divisor, float("-inf"), 0, False, False, 0, 0, False, BLOCK)
    for start in tl.range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = tl.load(row + v, mask=v < V, other=float("-inf")).to(tl.float32)
        weight = tl.where(stays(v, x, V, cut, first), tl.exp((x - highest) / divisor), 0.0)
        tl.store(target + v, tl.where(sampled, weight / total, (v == token).to(tl.float32)), mask=v < V)


@triton.jit
def reject(target, draft, V, token, drawn, BLOCK: tl.constexpr, REPLACEMENT: tl.constexpr):
    """What a rejected `token` leaves of `target` and `draft` `[V]` float32, in place, normalised."""
    target_sum = tl.zeros([BLOCK], tl.float32)
    draft_sum = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        wanted = tl.load(target + v, mask=v < V, other=0.0)
        offered = tl.load(draft + v, mask=v < V, other=0.0)
        target_sum += tl.where(drawn, tl.maximum(wanted - offered, 0.0), tl.where(v == token, 0.0, wanted))
        draft_sum += tl.where(v == token, 0.0, offered)
    target_total = tl.sum(target_sum, 0)
    draft_total = tl.sum(draft_sum, 0)
    tl.debug_barrier()  # all have read the token's own probabilities
    for start in tl.range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        wanted = tl.load(target + v, mask=v < V, other=0.0)
        offered = tl.load(draft + v, mask=v < V, other=0.0)
        left = tl.where(drawn, tl.maximum(wanted - offered, 0.0), tl.where(v == token, 0.0, wanted))
        left = tl.where(target_total > 0, left / tl.maximum(target_total, 1e-38), wanted)
        tl.store(target + v, left, mask=v < V)
        if not REPLACEMENT:
            others = tl.where(v == token, 0.0, offered / tl.maximum(draft_total, 1e-38))
            tl.store(draft + v, others, mask=v < V)


@triton.jit
def tree_rejection_kernel(
    tokens,  # [B, N]
    parents,  # [B, N]
    sizes,  # [B]
    logits,  # [B, N, V]
    draft_probs,  # [B, N, V]
    positions,  # [B]
    seeds,  # [2, B]
    temperature,  # [B]
    top_k,  # [B]
    top_p,  # [B]
    min_p,  # [B]
    target_rows,  # [B, V] scratch
    draft_rows,  # [B, V] scratch
    path,  # [B, N] out
    num_accepted,  # [B] out
    next_token,  # [B] out
    N,
    V,
    B,
    stride_sequence,
    stride_node,
    stride_draft_sequence,
    stride_draft_node,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    REPLACEMENT: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK_N)
    size = tl.minimum(tl.load(sizes + b), N).to(tl.int32)
    parent = tl.load(parents + b * N + j, mask=j < size, other=-1).to(tl.int32)
    position = tl.load(positions + b).to(tl.int32)
    heat = tl.load(temperature + b)
    target = target_rows + b * V
    draft = draft_rows + b * V
    way = tl.full([BLOCK_N], -1, tl.int64)
    drawn_token = tl.full((), 0, tl.int64)
    depth = 0
    node = tl.where(size > 0, 0, -1)
    while node >= 0:
        way = tl.where(j == depth, node.to(tl.int64), way)
        row = logits + b * stride_sequence + node.to(tl.int64) * stride_node
        write_target(row, target, V, heat, tl.load(top_k + b), tl.load(top_p + b), tl.load(min_p + b), BLOCK)
        child = tl.min(tl.where((parent == node) & (j < size), j, BLOCK_N), 0)
        if child < BLOCK_N:
            offered_row = draft_probs + b * stride_draft_sequence + node.to(tl.int64) * stride_draft_node
            for start in tl.range(0, V, BLOCK):
                v = start + tl.arange(0, BLOCK)
                tl.store(draft + v, tl.load(offered_row + v, mask=v < V, other=0.0).to(tl.float32), mask=v < V)
        tl.debug_barrier()  # the rows are written before anyone reads a single probability
        low, high = noise_key(seeds, B, b, position + depth + 1, 2)
        accepted = -1
        turn = 0
        while (child < BLOCK_N) & (accepted < 0):
            token = tl.load(tokens + b * N + child)
            wanted = tl.load(target + token)
            offered = tl.load(draft + token)
            drawn = offered > 0  # a child the draft gives no probability counts as fixed
            chance = uniform(low, high, turn)
            if chance < tl.where(drawn, tl.div_rn(wanted, tl.where(drawn, offered, 1.0)), wanted):
                accepted = child
            else:
                reject(target, draft, V, token, drawn, BLOCK, REPLACEMENT)
                tl.debug_barrier()
            child = tl.min(tl.where((parent == node) & (j > child) & (j < size), j, BLOCK_N), 0)
            turn += 1
        if accepted < 0:
            low, high = noise_key(seeds, B, b, position + depth + 1, 3)
            drawn_token = best_token(target, V, 1.0, float("-inf"), 0, False, heat > 0, low, high, True, BLOCK)
        tl.debug_barrier()  # nobody still reads the rows that the next node overwrites
        node = accepted
        depth += 1
    tl.store(path + b * N + j, way, mask=j < N)
    tl.store(num_accepted + b, depth)
    tl.store(next_token + b, drawn_token)


def tree_rejection_fused(
    tokens: Tensor,
    parents: Tensor,
    sizes: Tensor,
    logits: Tensor,
    draft_probs: Tensor,
    positions: Tensor,
    seeds: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    replacement: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `specdec.kernels.tree_rejection.tree_rejection`. Reads nothing to the host."""
    batch, nodes, vocab = logits.shape
    target_rows, draft_rows = torch.empty(2, batch, vocab, dtype=torch.float32, device=logits.device)
    path = torch.empty(batch, nodes, dtype=torch.int64, device=logits.device)
    num_accepted = torch.empty(batch, dtype=torch.int32, device=logits.device)
    next_token = torch.empty(batch, dtype=torch.int64, device=logits.device)
    tree_rejection_kernel[(batch,)](
        tokens.contiguous(),
        parents.contiguous(),
        sizes.contiguous(),
        logits,
        draft_probs,
        positions.contiguous(),
        seeds.contiguous(),
        temperature.contiguous(),
        top_k.contiguous(),
        top_p.contiguous(),
        min_p.contiguous(),
        target_rows,
        draft_rows,
        path,
        num_accepted,
        next_token,
        nodes,
        vocab,
        batch,
        logits.stride(0),
        logits.stride(1),
        draft_probs.stride(0),
        draft_probs.stride(1),
        BLOCK=BLOCK,
        BLOCK_N=triton.next_power_of_2(nodes),
        REPLACEMENT=replacement,
        num_warps=WARPS,
    )
    return path, num_accepted, next_token
