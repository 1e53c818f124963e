"""Forward passes in blocks of a fixed number of rows, so that a row's bits depend on nothing but its own text.

Libraries choose a matrix product's kernel by its number of rows, and vectorised loops end where the tensor does: a row
of logits then depends, in its last bits, on how many others are computed beside it. Here every pass of the model has
the same number of rows, the last one padded with rows that see nothing and are stored nowhere, and attention adds a
row's keys in the order of its text (`fixed_chunks`). A row is the same alone, in a batch and in a tree, and speculation
gives the bits of plain decoding.

What is left to a library is that it treats all places of a block alike. `choose_rows` tries that once for every model;
where it does not hold, and where rows share more than products (experts take the rows that are sent to them), a block
is a single row: as slow as one-token decoding, and as certain.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from specdec.cache import Places
from specdec.core import TargetOutput
from specdec.kernels.tree_attention import HOST, Backend
from specdec.packing import Rows
from specdec.tree.token_tree import TokenTree

if TYPE_CHECKING:
    from specdec.target import Target

ROWS = {"cpu": 16, "cuda": 64}  # of a block: about as many as cost little more than one
Forward = Callable[[Tensor, Rows, Tensor | None], TargetOutput]

Setting = tuple[str, int, torch.dtype, torch.device]  # backend, threads, and what a model can be moved to in place

_tried: weakref.WeakKeyDictionary[PreTrainedModel, dict[Setting, int]] = weakref.WeakKeyDictionary()


def check_settings(backend: Backend, compile: bool) -> None:
    """Raises:
    ValueError: the backend, or compiled passes, cannot keep a row's bits.
    """
    if backend not in ("auto", *HOST, "triton"):
        raise ValueError(
            f"exact=True needs an attention backend that keeps a row's bits whatever is beside it: auto, packed, cpp "
            f"or triton; got {backend!r}"
        )
    if compile:
        raise ValueError("exact=True runs the model as it is, in blocks of rows; it cannot be combined with compile")


def check_chains(backend: Backend, depths: Tensor, counts: Tensor, first: int) -> None:
    """On a GPU the fused kernel adds keys by their places, which are those of the text for chains alone.

    Args:
        backend: of tree attention.
        depths: `[B, N]` int32, position minus committed length.
        counts: `[B]` int32, live nodes.
        first: scratch place of node 0.

    Raises:
        ValueError: some tree is not a chain. Waits for the device.
    """
    if backend in HOST:
        return
    node = torch.arange(depths.shape[1], device=depths.device)
    if not ((depths == node + first) | (node >= counts[:, None])).all():
        raise ValueError(
            f"exact=True with attention backend {backend!r} has the bits of plain decoding for chains only, and the "
            "drafter proposed a tree; use tree='chain', or backend='packed', which is slower"
        )


def in_blocks(forward: Forward, tokens: Tensor, rows: Rows, size: int, keep: Tensor | None) -> TargetOutput:
    """`forward` over `size` rows at a time, as one pass over all of them.

    Args:
        forward: takes tokens `[size]`, their Rows, and which rows' logits are wanted (None: all of them).
        tokens: `[R]` int64.
        rows: their positions, places and visibility.
        size: rows of a block.
        keep: rows whose logits are wanted, ascending; None for all.

    Returns:
        logits `[1, R, V]`, or of the rows `keep` alone; hidden `[1, R, H]`.
    """
    wanted = None if keep is None else keep.tolist()
    logits, hidden = [], []
    for first in range(0, len(tokens), size):
        count = min(size, len(tokens) - first)
        chosen = [row - first for row in wanted if 0 <= row - first < count] if wanted is not None else range(count)
        unread = None if chosen else tokens.new_zeros(1)  # the head is not needed: of one row, which nobody reads
        block = pad(tokens[first : first + count], (0, size - count))
        output = forward(block, cut(rows, first, size), unread)
        if chosen:
            logits.append(output.logits[:, :count] if wanted is None else output.logits[:, list(chosen)])
        hidden.append({layer: x[:, :count] for layer, x in output.hidden.items()})
    return TargetOutput(torch.cat(logits, 1), {layer: torch.cat([x[layer] for x in hidden], 1) for layer in hidden[0]})


def cut(rows: Rows, first: int, size: int) -> Rows:
    """`size` of the rows from `first` on. Where they end before, the rest sees nothing and is stored nowhere."""
    seen, count = rows.visible, min(size, len(rows.positions) - first)
    starts = (seen.row_starts - first).clamp(0, count)  # [B + 1]
    sizes, words = seen.tree_sizes, seen.words
    if words is None:  # a chain's rows are its last nodes: those after this block do not count yet
        sizes = sizes - (seen.row_starts[1:] - first - count).clamp(min=0).minimum(seen.row_starts.diff())
    else:
        words = pad(words[first : first + count], (0, 0, 0, size - count))
    whole, spans = rows.places, []
    for slot, place, row, number in whole.spans:
        low, high = max(row, first), min(row + number, first + count)
        if low < high:
            spans.append((slot, place + low - row, low - first, high - low))
    places = Places(whole.slots[first : first + count], whole.places[first : first + count], spans)
    visible = replace(seen, row_starts=starts, tree_sizes=sizes, words=words, fixed_chunks=True)
    return Rows(pad(rows.positions[first : first + count], (0, size - count)), places, visible, (1, size))


def choose_rows(target: Target) -> int:
    """Rows of a block that keep their bits whatever is beside them and wherever they stand.

    Tried once for a model, and again where it was moved to another dtype or device.
    """
    if any(name.endswith("experts") for name, _ in target.model.named_modules()):
        return 1
    tried = _tried.setdefault(target.model, {})
    threads = torch.get_num_threads()  # libraries divide a product among them
    key = (target.backend, threads, target.model.dtype, target.device)
    if key not in tried:
        rows = ROWS[target.device.type] if target.device.type in ROWS else ROWS["cuda"]
        tried[key] = rows if _keeps_bits(target, rows) else 1
    return tried[key]


def _keeps_bits(target: Target, rows: int) -> bool:
    target.block_rows = rows
    return _keeps_bits_in_any_order(target, rows) and _keeps_bits_in_company(target, rows)


def _keeps_bits_in_any_order(target: Target, rows: int) -> bool:
    """Whether texts of one token each have the same bits in another order, and one of them alone."""
    tokens = torch.arange(1, rows + 1, device=target.device) * 7919 % target.vocab_size  # [rows]

    def logits(given: Tensor) -> Tensor:
        target.open(rows, 1)
        return target.verify(TokenTree.roots(given)).logits[:, 0]  # [rows, V]

    together, place = logits(tokens), torch.arange(rows, device=target.device)
    orders = (place.flip(0), (place + rows // 3) % rows)
    same = all(torch.equal(logits(tokens[order]), together[order]) for order in orders)
    alone = logits(torch.where(place == rows // 2, tokens, -1))[rows // 2]
    return same and torch.equal(alone, together[rows // 2])


@torch.inference_mode()
def _keeps_bits_in_company(target: Target, rows: int) -> bool:
    """Whether a text longer than a block, and the last node of a tree after it, have the bits beside another text that
    they have alone and token by token. On a GPU the fused kernel takes chains only: see `check_chains`."""
    parents = [-1, 0, 0, 2] if target.backend in HOST else [-1, 0, 1, 2]
    path = [0, 2, 3] if target.backend in HOST else [0, 1, 2, 3]
    most = target.max_positions - len(parents) if target.max_positions else rows * 2
    text = [i * 7919 % target.vocab_size for i in range(1, min(rows + rows // 2 + 1, most) + 1)]
    nodes = [(i * 7919 + 1) % target.vocab_size for i in range(len(parents))]

    target.open(2, len(text) + len(nodes), len(nodes))
    prompts = [text[: rows // 3 + 1], text]  # the other one first, so that rows stand elsewhere than alone
    prefilled = target.prefill([0, 1], prompts).logits[1, 0]  # [V]
    beside = target.verify(TokenTree.from_lists([(nodes[:2], [-1, 0]), (nodes, parents)], target.device)).logits[1, -1]

    target.open(1, len(text) + len(nodes))
    same = torch.equal(target.prefill([0], [text]).logits[0, 0], prefilled)
    slot, one = (torch.full((1,), number, device=target.device) for number in (0, 1))
    for node in path:
        alone = target.verify(TokenTree.roots(nodes[node] * one)).logits[0, 0]  # [V]
        target.cache.append(slot, one)
    return same and torch.equal(alone, beside)
