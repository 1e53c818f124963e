"""One step of every slot, on the device: propose, verify, accept, commit, observe. The host is asked nothing.

What outlives a step lies in fixed buffers (roots, KV and its lengths, sampling settings, the drafter's state), so that
on CUDA a graph can hold a step (see `capture`). What a step did comes out as one record, which the loop reads when it
likes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.cache import Paging
from specdec.chunks import Chunk
from specdec.core import AcceptanceRule, Drafter, TargetOutput, Verdict
from specdec.sampling import Sampler, StepSampling
from specdec.target import Target
from specdec.tree.token_tree import TokenTree

Lap = Callable[[str], None]  # told after every phase which one it was
COLUMNS = 6  # of a record, before the tokens


class Step:
    """Everything a step works on, and the step.

    Args:
        target, drafter, rule: the three parts.
        capacity: slots, B.
        max_length: longest prompt plus new tokens of any request.
        paging: pages that are given to slots as they need them; None for a slot's room at once.

    Attributes:
        roots: `[B]` int64, the last committed token of every slot, -1 for an empty one.
        sampler: the slots' sampling settings.
        state: the drafter's.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        rule: AcceptanceRule,
        capacity: int,
        max_length: int,
        paging: Paging | None = None,
    ):
        self.target, self.drafter, self.rule, self.paging = target, drafter, rule, paging
        self.capacity, self.max_length, self.max_nodes = capacity, max_length, drafter.needs.max_nodes
        target.open(capacity, max_length, drafter.needs.room, paging)
        self.state: Any = drafter.open(capacity, max_length, target.device)
        self.sampler = Sampler(capacity, target.vocab_size, target.device)
        self.roots = torch.full((capacity,), -1, dtype=torch.int64, device=target.device)

    def __call__(self, slots: Sequence[int], lap: Lap, chunks: Sequence[Chunk] = ()) -> Tensor:
        """Move all slots on; `slots` are those with a request. Returns the record, see `record`.

        `chunks` of the prompts of other slots are read and committed in the same forward pass.
        """
        if chunks and (beside := getattr(self.drafter, "beside", None)):
            beside(self.state, sum(len(chunk.tokens) for chunk in chunks))
        tree = self.propose(slots)
        lap("draft")
        verdict, output, record = self.decide(tree, slots, lap, chunks)
        self.drafter.observe(self.state, tree, verdict, output)
        lap("draft")
        return record

    def propose(self, slots: Sequence[int]) -> TokenTree:
        """The drafter's tree.

        Raises:
            ValueError: it is no tree for every slot, or has more nodes than the drafter said, or other tokens than the
                target's (on a GPU, where that would take a look, tokens are not checked).
        """
        noise = self.sampling(slots).draft_noise(self.rule.shared_noise)
        tree = self.drafter.propose(self.state, self.roots, noise)
        if not isinstance(tree, TokenTree) or tree.batch_size != self.capacity:
            got = f"trees for {tree.batch_size} slots" if isinstance(tree, TokenTree) else f"{tree!r:.80}"
            raise ValueError(f"the drafter proposed {got}; expected a TokenTree for {self.capacity} slots")
        if tree.max_nodes > self.max_nodes:
            raise ValueError(f"the drafter proposed {tree.max_nodes} nodes; its needs.max_nodes says {self.max_nodes}")
        if tree.riders is not None and tree.riders.count > self.drafter.needs.riders:
            needs = self.drafter.needs.riders
            raise ValueError(f"the drafter proposed {tree.riders.count} riders; its needs.riders says {needs}")
        if tree.tokens.device.type == "cpu":
            low, high = (int(x) for x in torch.aminmax(tree.rows.tokens))
            if low < 0 or high >= self.target.vocab_size:
                wrong, most = low if low < 0 else high, self.target.vocab_size - 1
                raise ValueError(f"the drafter proposed token {wrong}; the target's go from 0 to {most}")
        return tree

    def read(self, chunks: Sequence[Chunk]) -> None:
        """Read and commit chunks where no slot has a tree."""
        self.target.verify(TokenTree.roots(torch.full_like(self.roots, -1)), chunks)
        self.target.append(chunks)

    def decide(
        self, tree: TokenTree, slots: Sequence[int], lap: Lap, chunks: Sequence[Chunk] = ()
    ) -> tuple[Verdict, TargetOutput, Tensor]:
        """Verify, accept and commit; returns the record, too."""
        sampling = self.sampling(slots)
        astray = (tree.tokens[:, 0] != self.roots) & (tree.sizes > 0)  # [B]
        output = self.target.verify(tree, chunks)
        lap("verify")
        verdict = self.rule(tree, output.logits, sampling)
        lap("accept")
        self.target.commit(verdict)
        if chunks:
            self.target.append(chunks)
        emitted = verdict.emitted(tree)  # [B, D]
        self.sampler.commit(emitted)
        self.roots.copy_(torch.where(self.roots >= 0, verdict.next_token, -1))
        lap("commit")
        return verdict, output, record(tree, verdict, emitted, output.logits, astray)

    @torch.inference_mode()
    def reset(self) -> None:
        """Empty all slots."""
        self.target.open(self.capacity, self.max_length, self.drafter.needs.room, self.paging)
        self.roots.fill_(-1)
        self.sampler.reset()

    def sampling(self, slots: Sequence[int]) -> StepSampling:
        """The sampler at this step."""
        return self.sampler.at(self.target.lengths, self.max_nodes, slots)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Within the block kernels, events and graphs are those of this GPU, which need not be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def unheard(phase: str) -> None:
    """A lap that nobody times."""


def record(tree: TokenTree, verdict: Verdict, emitted: Tensor, logits: Tensor, astray: Tensor) -> Tensor:
    """What the host wants to know of a step, `[B, 6 + 3 D]` int64.

    Per slot: tokens emitted, tree size, riders, tree height, whether the logits at which the walk stopped are NaN,
    whether the tree begins with another token than the text's last; then the tokens, of every node of the path how many
    children it had, and the place of the next one among them, 0 being the first. See `read_record`.
    """
    last = verdict.last  # [B, 1]
    below = tree.parents[:, None] == verdict.path[..., None]  # [B, D, N]
    following = torch.cat([verdict.path[:, 1:], verdict.path.new_full((len(last), 1), -1)], 1)  # [B, D]
    node = torch.arange(tree.max_nodes, device=last.device)
    earlier = below & (node < following[..., None])  # [B, D, N]
    height = tree.depths.amax(-1)
    damaged = logits[torch.arange(len(last), device=last.device), last[:, 0]].isnan().any(-1)
    riders = tree.rows.sizes - tree.sizes
    columns = [verdict.num_accepted, tree.sizes, riders, height, damaged, astray]
    return torch.cat([torch.stack([c.long() for c in columns], 1), emitted, below.sum(-1), earlier.sum(-1)], 1)


class Recorded(NamedTuple):
    """A slot's part of a record, on the host.

    Attributes:
        size, riders, height: of the tree.
        damaged, astray: see `record`.
        tokens: emitted.
        children: how many the nodes of the accepted path had, the root first.
        ranks: of the accepted nodes below the root, each its place among its siblings.
    """

    size: int
    riders: int
    height: int
    damaged: bool
    astray: bool
    tokens: list[int]
    children: list[int]
    ranks: list[int]


def read_record(row: Sequence[int]) -> Recorded:
    """`row`: of a record's list."""
    count, size, riders, height, damaged, astray = row[:COLUMNS]
    width = (len(row) - COLUMNS) // 3
    tokens, children, ranks = (list(row[COLUMNS + i * width :][:count]) for i in range(3))
    return Recorded(size, riders, height, bool(damaged), bool(astray), tokens, children, ranks[:-1])
