"""TokenTree: what a drafter proposes and the target verifies in one forward pass.

A node is a token; its path from the root is a candidate continuation. Node 0 is the last committed token, whose KV is
not cached yet. Parents come before their children, so that the nodes of a path, in index order, are its tokens in text
order. Which nodes a node may attend to is a row of bits (its ancestors and itself): 64 nodes per int64 word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from specdec.tree.riders import Riders, seat

WORD_BITS = 64


def num_words(nodes: int) -> int:
    """Words needed for `nodes` visibility bits."""
    return max(1, -(-nodes // WORD_BITS))


@dataclass(frozen=True)
class TokenTree:
    """A batch of ragged trees. A sequence of size 0 is an empty slot.

    Attributes:
        tokens: `[B, N]` int64; node 0 is the root, padding is 0.
        parents: `[B, N]` int32; -1 for the root and for padding, else `parents[:, j] < j`.
        sizes: `[B]` int32; live nodes, the rest of a row is padding.
        draft_probs: `[B, N, V]` or None. Row j is the distribution node j's children were drawn from, in index order.
            None: children were fixed without drawing (n-gram, top-k).
        riders: further rows for the target's forward, which are no nodes: nothing but `rows` knows them.
        replacement: how siblings were drawn, where they were. False: without replacement, each from what the ones
            before it have left of row j. True: each from all of row j, so that siblings may carry the same token.
    """

    tokens: Tensor
    parents: Tensor
    sizes: Tensor
    draft_probs: Tensor | None = None
    riders: Riders | None = None
    replacement: bool = False

    @property
    def batch_size(self) -> int:
        """B, empty slots included."""
        return self.tokens.shape[0]

    @property
    def max_nodes(self) -> int:
        """N, padding included."""
        return self.tokens.shape[1]

    @cached_property
    def depths(self) -> Tensor:
        """`[B, N]` int32: 0 for the root and for padding."""
        return self._shape[1]

    @cached_property
    def most_depth(self) -> int:
        """What no depth is above, as far as the host knows without a look at the device."""
        return self.max_nodes - 1

    @cached_property
    def words(self) -> Tensor:
        """`[B, N, W]` int64: bit i of row j is set when node i is node j or one of its ancestors; padding has none."""
        return self._shape[0]

    @cached_property
    def _shape(self) -> tuple[Tensor, Tensor]:
        from specdec.kernels.ancestor_words import ancestor_words

        return ancestor_words(self.parents, self.sizes)

    @cached_property
    def ancestors(self) -> Tensor:
        """`[B, N, N]` bool: the bits of `words`, unpacked."""
        bits = torch.arange(WORD_BITS, device=self.words.device)
        unpacked = ((self.words[..., None] >> bits) & 1).bool().flatten(2)  # [B, N, W * 64]
        return unpacked[..., : self.max_nodes]

    @cached_property
    def rows(self) -> TokenTree:
        """What the target runs: this tree, its riders as further nodes after the live ones, `N + R` in all."""
        if self.riders is None:
            return self
        return TokenTree(*seat(self.tokens, self.parents, self.sizes, self.riders))

    def no_deeper_than(self, depth: int) -> TokenTree:
        """This tree, whose `most_depth` is now at most `depth`: its maker knows."""
        self.__dict__["most_depth"] = min(depth, self.max_nodes - 1)
        return self

    def child(self, node: Tensor, token: Tensor) -> Tensor:
        """The first child of `node` `[B]` that carries `token` `[B]`; -1 where there is none: `[B]` int64."""
        match = (self.parents == node[:, None]) & (self.tokens == token[:, None])  # [B, N]
        return torch.where(match.any(-1), match.int().argmax(-1), -1)

    def paths(self, sequence: int) -> list[list[int]]:
        """Tokens of every root-to-leaf path of one sequence, the root included. Reads from the device."""
        size = int(self.sizes[sequence])
        tokens, parents = self.tokens[sequence, :size].tolist(), self.parents[sequence, :size].tolist()
        result = []
        for leaf in (j for j in range(size) if j not in parents):
            path, node = [], leaf
            while node >= 0:
                path.append(tokens[node])
                node = parents[node]
            result.append(path[::-1])
        return result

    @staticmethod
    def roots(tokens: Tensor) -> TokenTree:
        """Trees of one node: plain decoding. `tokens` `[B]` int64, -1 for an empty slot."""
        return TokenTree.chain(tokens[:, None])

    @staticmethod
    def chain(tokens: Tensor, draft_probs: Tensor | None = None) -> TokenTree:
        """One path per sequence. `tokens` `[B, N]` int64, the root first; a root of -1 is an empty slot."""
        batch, nodes = tokens.shape
        parents, depths, words = _chain_shape(nodes, tokens.device)
        live = tokens[:, :1] >= 0  # [B, 1]
        sizes = live[:, 0].to(torch.int32) * nodes
        tree = TokenTree(torch.where(live, tokens, 0), torch.where(live, parents, -1), sizes, draft_probs)
        return tree.with_shape(torch.where(live, depths, 0), torch.where(live[..., None], words, 0))

    @staticmethod
    def from_paths(
        roots: Sequence[int],
        paths: Sequence[Sequence[Sequence[int]]],
        max_nodes: int | None = None,
        device: torch.device | str = "cpu",
    ) -> TokenTree:
        """Merge each sequence's continuations into one tree: shared prefixes become shared nodes.

        Args:
            roots: the root token of every sequence, -1 for an empty slot.
            paths: for every sequence, its continuations (without the root), the most likely first.
            max_nodes: earlier paths get their nodes first; what does not fit is left out. None: no limit.
            device: where the tensors go.
        """
        trees = [merge_paths(r, p, max_nodes) for r, p in zip(roots, paths, strict=True)]
        return TokenTree.from_lists(trees, device)

    @staticmethod
    def from_lists(trees: Sequence[tuple[list[int], list[int]]], device: torch.device | str = "cpu") -> TokenTree:
        """Build from host lists, one (tokens, parents) pair per sequence; an empty pair is an empty slot.

        The ancestor words are built here too, with Python's integers: for the small trees of host-side drafters that
        costs less than one tensor operation per level.

        Raises:
            ValueError: a parent does not come before its child, or a first node is not a root.
        """
        nodes = max([len(tokens) for tokens, _ in trees] + [1])
        count = num_words(nodes)
        token_rows, parent_rows, depth_rows, word_rows = [], [], [], []
        for tokens, parents in trees:
            visible, node_depths = _visible_bits(parents)
            pad = nodes - len(tokens)
            token_rows.append(tokens + [0] * pad)
            parent_rows.append(parents + [-1] * pad)
            depth_rows.append(node_depths + [0] * pad)
            word_rows.append([split_words(bits, count) for bits in visible] + [[0] * count] * pad)
        tree = TokenTree(
            torch.tensor(token_rows, dtype=torch.int64, device=device),
            torch.tensor(parent_rows, dtype=torch.int32, device=device),
            torch.tensor([len(tokens) for tokens, _ in trees], dtype=torch.int32, device=device),
        )
        depths = torch.tensor(depth_rows, dtype=torch.int32, device=device)
        return tree.with_shape(depths, torch.tensor(word_rows, dtype=torch.int64, device=device))

    def only(self, live: Tensor) -> TokenTree:
        """The same trees where `live` `[B]` bool, size 0 elsewhere; a tree of fixed children."""
        keep = live[:, None]
        tree = TokenTree(
            torch.where(keep, self.tokens, 0),
            torch.where(keep, self.parents, -1),
            torch.where(live, self.sizes, 0),
            riders=self.riders,
        )
        return tree.with_shape(torch.where(keep, self.depths, 0), torch.where(keep[..., None], self.words, 0))

    def with_shape(self, depths: Tensor, words: Tensor) -> TokenTree:
        """Fill in depths `[B, N]` and words `[B, N, W]` where the maker already knows them; returns the tree itself."""
        self.__dict__["depths"], self.__dict__["words"] = depths, words
        return self


def merge_paths(root: int, paths: Sequence[Sequence[int]], max_nodes: int | None = None) -> tuple[list[int], list[int]]:
    """One sequence's continuations as (tokens, parents), shared prefixes once, at most `max_nodes` nodes.

    Earlier paths get their nodes first. A root of -1 gives an empty tree.
    """
    if root < 0:
        return [], []
    tokens, parents = [root], [-1]
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    for path in paths:
        node = 0
        for token in path:
            following = nodes.get((node, token))
            if following is None:
                if max_nodes is not None and len(tokens) >= max_nodes:
                    break
                following = nodes[(node, token)] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = following
    return tokens, parents


def split_words(bits: int, count: int) -> list[int]:
    """A non-negative integer's bits as `count` signed 64-bit words, the lowest first."""
    words = [(bits >> (WORD_BITS * w)) & 0xFFFF_FFFF_FFFF_FFFF for w in range(count)]
    return [w - (1 << 64) if w >= 1 << 63 else w for w in words]


def _visible_bits(parents: Sequence[int]) -> tuple[list[int], list[int]]:
    visible: list[int] = []
    depths: list[int] = []
    for j, parent in enumerate(parents):
        if not (parent == -1 if j == 0 else 0 <= parent < j):
            raise ValueError(f"parents[{j}] is {parent}; node 0 must have -1 and every other a node before it")
        visible.append((visible[parent] if j else 0) | 1 << j)
        depths.append(depths[parent] + 1 if j else 0)
    return visible, depths


@cache  # a CUDA graph may hold what it gives
def _chain_shape(nodes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """parents `[1, N]`, depths `[1, N]`, words `[1, N, W]` of a path."""
    depths = torch.arange(nodes, dtype=torch.int32, device=device)[None]
    words = [split_words((1 << (j + 1)) - 1, num_words(nodes)) for j in range(nodes)]
    return depths - 1, depths, torch.tensor([words], dtype=torch.int64, device=device)
