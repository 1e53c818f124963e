"""What the target thought of a token the last time it read it: its likeliest successors, kept in one table.

Every verified node, rejected ones too, leaves the top k of its logits in the row of its token. A draft is a static tree
filled in from the table. Luo et al., Token Recycling, arXiv 2408.08696.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core import DraftNeeds, TargetOutput, TreePolicy, Verdict
from specdec.sampling import DraftNoise
from specdec.tree.compact import compact
from specdec.tree.static import StaticTree
from specdec.tree.token_tree import TokenTree


@dataclass(slots=True)
class State:
    """Where the table is, and the tree's shape, on the device.

    Attributes:
        table: `[T * (V + 2), k]` int32, T tables one below the other: 1 for all slots, or one a slot. Row v has the
            successors of token v, the best first, or -1 where it was never read; row V is never written, row V + 1
            takes what belongs nowhere. None before the first request, which tells V.
        first: `[B, 1]` int64, the row at which a slot's table begins.
        levels: for every level of the tree, its nodes' parents and ranks, `[n]` int64.
        parents: `[N]` int64.
    """

    table: Tensor | None
    first: Tensor
    levels: list[tuple[Tensor, Tensor]]
    parents: Tensor


class Recycling:
    """See the module. The table stays with the drafter, for later requests and other decoders.

    Args:
        tree: its shape; ranks are columns of the table.
        remember: one table for all requests; False to begin every request with an empty one.

    Raises:
        ValueError: the tree is not static.
    """

    def __init__(self, tree: TreePolicy, remember: bool = True):
        if not isinstance(tree, StaticTree):
            raise ValueError(f"recycling has no probabilities to grow {tree!r} by; give tree=chain or tree=static")
        self.needs = DraftNeeds(max_nodes=tree.max_nodes, on_device=True)
        self.remember = remember
        self.paths = tree.paths
        self.successors = 1 + max(max(path) for path in tree.paths)
        self._table: Tensor | None = None

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """No table yet: the vocabulary is not known."""
        places = {path: j for j, path in enumerate(((), *self.paths))}
        levels = []
        for depth in range(1, len(self.paths[-1]) + 1):
            level = [path for path in self.paths if len(path) == depth]
            parents = torch.tensor([places[path[:-1]] for path in level], device=device)
            levels.append((parents, torch.tensor([path[-1] for path in level], device=device)))
        above = [-1, *(places[path[:-1]] for path in self.paths)]
        first = torch.zeros(capacity, 1, dtype=torch.int64, device=device)
        return State(None, first, levels, torch.tensor(above, device=device))

    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Make or find the table; what the target thinks of the prompts' last tokens is known.

        Raises:
            ValueError: the target has fewer tokens than the tree has ranks.
        """
        logits = prefill.logits[:, 0]  # [n, V]
        if state.table is None:
            state.table = self._make_table(state, logits)
        if not self.remember:
            for slot in slots:
                row = int(state.first[slot])
                state.table[row : row + logits.shape[-1]] = -1
        last = torch.tensor([prompt[-1] for prompt in prompts], device=logits.device)
        self._write(state.table, state.first[slots, 0] + last, logits)

    def _make_table(self, state: State, logits: Tensor) -> Tensor:
        vocab_size, capacity = logits.shape[-1], len(state.first)
        if vocab_size < self.successors:
            raise ValueError(f"the tree drafts {self.successors} children a node; the target has {vocab_size} tokens")
        rows = vocab_size + 2
        if not self.remember:
            state.first.copy_(torch.arange(0, capacity * rows, rows, device=logits.device)[:, None])
            rows *= capacity
        known = self._table
        if known is not None and known.shape[0] == rows and known.device == logits.device:
            return known
        table = torch.full((rows, self.successors), -1, dtype=torch.int32, device=logits.device)
        if self.remember:
            self._table = table
        return table

    def _write(self, table: Tensor, rows: Tensor, logits: Tensor) -> None:
        """`rows` `[M]` get the top k of `logits` `[M, V]`; of those for the same row the last."""
        number = torch.arange(len(rows), device=rows.device)
        latest = number.new_zeros(len(table)).scatter_reduce_(0, rows, number, "amax")
        nowhere = logits.shape[-1] + 1
        table[torch.where(latest[rows] == number, rows, nowhere)] = logits.topk(self.successors).indices.int()

    def propose(self, state: State, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """Look up level by level; nodes of which nothing is known are left out."""
        table = state.table
        if table is None:
            return TokenTree.roots(roots)
        tokens = roots[:, None]  # [B, N so far], -1 for unknown
        for parents, ranks in state.levels:
            above = tokens[:, parents]  # [B, n]
            rows = state.first + torch.where(above >= 0, above, noise.vocab_size)
            tokens = torch.cat([tokens, table[rows, ranks].long()], 1)
        return compact(tokens, state.parents.expand_as(tokens), tokens >= 0, self.needs.max_nodes)

    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Every node teaches, accepted or not."""
        assert state.table is not None
        live = torch.arange(tree.max_nodes, device=tree.tokens.device) < tree.sizes[:, None]  # [B, N]
        rows = torch.where(live, state.first + tree.tokens, output.logits.shape[-1] + 1)
        self._write(state.table, rows.flatten(), output.logits.flatten(0, 1))
