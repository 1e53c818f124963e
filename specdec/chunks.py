"""Pieces of prompts that are read in a verify pass, beside the trees of other slots.

A piece is a chain behind the committed text of its slot: rows like a tree's, of which all are committed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.tree.token_tree import TokenTree, num_words


@dataclass(slots=True)
class Chunk:
    """Tokens that follow the committed text of a slot that has no tree.

    Attributes:
        slot: which.
        tokens: at least one.
        last: whether what the target thinks after the last of them is wanted.
        logits: `[V]` after the last token, if it was; filled in by the pass.
        hidden: `[n, H]` for every layer that the target was asked for; filled in by the pass.
    """

    slot: int
    tokens: Sequence[int]
    last: bool
    logits: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Trees' nodes and chunks as one batch. R is all rows, as they are packed.

    Attributes:
        tokens, depths: `[B, N]`; `words` `[B, N, W]`; `counts` `[B]` int32, live nodes: as for `Target.extend`.
        rows: rows of every slot, on the host.
        nodes: `[T]` int64, which of the R rows are the trees'; `homes` `[T]` int64, which of the trees' `B * N` nodes.
        starts: of every chunk, its first row.
    """

    tokens: Tensor
    depths: Tensor
    words: Tensor
    counts: Tensor
    rows: list[int]
    nodes: Tensor
    homes: Tensor
    starts: list[int]


def mix(tree: TokenTree, chunks: Sequence[Chunk]) -> Mixed:
    """`tree` with its riders as nodes; of size 0 in the chunks' slots. On a GPU its sizes are not read: all its nodes
    are rows."""
    batch, nodes = tree.batch_size, tree.max_nodes
    device = tree.tokens.device
    rows = tree.sizes.tolist() if device.type == "cpu" else [nodes] * batch
    trees = list(rows)
    longest = max(len(chunk.tokens) for chunk in chunks)
    width = max(nodes, longest)
    count_words = num_words(width)
    tokens, depths = pad(tree.tokens, (0, width - nodes)), pad(tree.depths, (0, width - nodes))
    words = pad(tree.words, (0, count_words - tree.words.shape[2], 0, width - nodes))
    counts = tree.sizes.clone()
    chain = TokenTree.chain(torch.zeros(1, longest, dtype=torch.int64, device=device))
    for chunk in chunks:
        slot, count = chunk.slot, len(chunk.tokens)
        tokens[slot, :count] = torch.tensor(chunk.tokens, device=device)
        depths[slot, :count] = chain.depths[0, :count]
        words[slot, :count, : chain.words.shape[2]] = chain.words[0, :count]
        words[slot, count:] = 0
        counts[slot] = rows[slot] = count
        trees[slot] = 0
    starts, at, seats = [], 0, []
    for slot, number in enumerate(rows):
        starts.append(at)
        seats += [(at + node, slot * nodes + node) for node in range(trees[slot])]
        at += number
    placed = torch.tensor(seats, dtype=torch.int64, device=device).view(-1, 2)  # [T, 2]
    firsts = [starts[chunk.slot] for chunk in chunks]
    return Mixed(tokens, depths, words, counts, rows, placed[:, 0], placed[:, 1], firsts)
