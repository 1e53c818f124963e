"""What the target thought of a token the last time it read it: its likeliest successors, kept in tables.

Every verified node, rejected ones too, leaves the top k of its logits in the row of its token: in its own text's table,
and in one for all texts. A draft is a static tree filled in from the text's own table, and from the common one where
the text has not met a token yet. Luo et al., Token Recycling, arXiv 2408.08696, has one text and one table; several
texts at once would write over each other there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specdec.core import DraftNeeds, TargetOutput, TreePolicy, Verdict
from specdec.sampling import DraftNoise
from specdec.tree.compact import compact
from specdec.tree.static import StaticTree
from specdec.tree.token_tree import TokenTree


@dataclass(slots=True)
class State:
    """The slots' tables, and the tree's shape, on the device.

    A table has V + 2 rows: row v has the successors of token v, the best first, or -1 where it was never read; row V is
    never written, row V + 1 takes what belongs nowhere.

    Attributes:
        own: `[B * (V + 2), k]` int32, the slots' tables one below the other. None before the first request, which tells
            V.
        common: `[V + 2, k]` int32, the drafter's table of all texts; None if it remembers nothing.
        first: `[B, 1]` int64, the row at which a slot's table begins.
        levels: for every level of the tree, its nodes' parents and ranks, `[n]` int64.
        parents: `[N]` int64.
    """

    own: Tensor | None
    common: Tensor | None
    first: Tensor
    levels: list[tuple[Tensor, Tensor]]
    parents: Tensor


class Recycling:
    """See the module. The common table stays with the drafter, for later requests and other decoders.

    A table takes 4 bytes x vocabulary x ranks of the tree: 2.6 MB for 128,256 tokens and 5 ranks, once for every slot
    and once for what is common.

    Args:
        tree: its shape; ranks are columns of the tables.
        remember: keep the common table; False to begin every request with nothing.

    Raises:
        ValueError: the tree is not static.
    """

    takes_levels: ClassVar[bool] = True

    def __init__(self, tree: TreePolicy, remember: bool = True):
        if not isinstance(tree, StaticTree):
            raise ValueError(f"recycling has no probabilities to grow {tree!r} by; give tree=chain or tree=static")
        self.needs = DraftNeeds(max_nodes=tree.max_nodes, on_device=True)
        self.remember = remember
        self.paths = tree.paths
        self.successors = 1 + max(max(path) for path in tree.paths)
        self._common: Tensor | None = None

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """No tables yet: the vocabulary is not known."""
        places = {path: j for j, path in enumerate(((), *self.paths))}
        levels = []
        for depth in range(1, len(self.paths[-1]) + 1):
            level = [path for path in self.paths if len(path) == depth]
            parents = torch.tensor([places[path[:-1]] for path in level], device=device)
            levels.append((parents, torch.tensor([path[-1] for path in level], device=device)))
        above = [-1, *(places[path[:-1]] for path in self.paths)]
        first = torch.zeros(capacity, 1, dtype=torch.int64, device=device)
        return State(None, None, first, levels, torch.tensor(above, device=device))

    @torch.inference_mode()
    def forget(self) -> None:
        """Empty the common table, which decoders may hold."""
        if self._common is not None:
            self._common.fill_(-1)

    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Make or empty the slots' tables; what the target thinks of the prompts' last tokens is known.

        Raises:
            ValueError: the target has fewer tokens than the tree has ranks.
        """
        logits = prefill.logits[:, 0]  # [n, V]
        if state.own is None:
            self._make_tables(state, logits)
        assert state.own is not None
        state.own.view(len(state.first), -1, self.successors)[slots] = -1
        nowhere = logits.shape[-1] + 1
        last = torch.tensor([prompt[-1] if prompt else nowhere for prompt in prompts], device=logits.device)
        self._write(state, state.first[slots, 0], last, logits)

    def _make_tables(self, state: State, logits: Tensor) -> None:
        vocab_size, capacity = logits.shape[-1], len(state.first)
        if vocab_size < self.successors:
            raise ValueError(f"the tree drafts {self.successors} children a node; the target has {vocab_size} tokens")
        rows = vocab_size + 2
        state.first.copy_(torch.arange(0, capacity * rows, rows, device=logits.device)[:, None])
        empty = torch.full((rows, self.successors), -1, dtype=torch.int32, device=logits.device)
        state.own = empty.repeat(capacity, 1)
        if not self.remember:
            return
        known = self._common
        if known is None or known.shape[0] != rows or known.device != logits.device:
            self._common = empty
        state.common = self._common

    def _write(self, state: State, first: Tensor, tokens: Tensor, logits: Tensor) -> None:
        """Rows `tokens` `[M]` of the tables that begin at `first` `[M]`, and of the common one, get the top k of
        `logits` `[M, V]`. A token of V + 1 belongs nowhere."""
        best = logits.topk(self.successors).indices.int()  # [M, k]
        nowhere = logits.shape[-1] + 1
        for table, rows in ((state.own, first + tokens), (state.common, tokens)):
            if table is not None:
                order = rows.argsort(stable=True)
                ordered = rows[order]
                last = torch.ones_like(ordered, dtype=torch.bool)  # of those for the same row
                last[:-1] = ordered[1:] != ordered[:-1]
                table[torch.where(last, ordered, nowhere)] = best[order]

    def propose(self, state: State, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        """Look up level by level, unless no `levels` are wanted; nodes of which nothing is known are left out."""
        own, common = state.own, state.common
        if own is None or levels == 0:
            return TokenTree.roots(roots)
        tokens = roots[:, None]  # [B, N so far], -1 for unknown
        for parents, ranks in state.levels:
            above = tokens[:, parents]  # [B, n]
            above = torch.where(above >= 0, above, noise.vocab_size)
            found = own[state.first + above, ranks]
            if common is not None:
                found = torch.where(found >= 0, found, common[above, ranks])
            tokens = torch.cat([tokens, found.long()], 1)
        return compact(tokens, state.parents.expand_as(tokens), tokens >= 0, self.needs.max_nodes)

    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Every node teaches, accepted or not."""
        live = torch.arange(tree.max_nodes, device=tree.tokens.device) < tree.sizes[:, None]  # [B, N]
        tokens = torch.where(live, tree.tokens, output.logits.shape[-1] + 1)
        self._write(state, state.first.expand_as(tokens).flatten(), tokens.flatten(), output.logits.flatten(0, 1))
