"""Several drafters for one text: their trees as one, or the tree of the one that seems best.

Hu et al., SAM-Decoding, arXiv 2411.10666, switch to another drafter where no long match is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from specdec.core import Drafter, DraftNeeds, TargetOutput, Verdict, forget
from specdec.sampling import DraftNoise
from specdec.target import Target, attach
from specdec.tree.token_tree import TokenTree
from specdec.tree.union import choose, path_keys, token_keys, union

MODES = ("merge", "fallback", "acceptance")


@dataclass(slots=True)
class State:
    """The parts' states.

    Attributes:
        scores: `[B, parts]` float32, running mean of the draft tokens of each part that were right.
        trees: the parts' last proposals.
    """

    parts: list[Any]
    scores: Tensor
    trees: list[TokenTree] = field(default_factory=list)


class Hybrid:
    """See the module. All parts propose at every step, so that all of them can be judged by the text.

    What a part has drawn at random is treated as fixed, which every rule takes (`rejection` accepts a little less). One
    part may have riders: they ride at every step, whoever's tree it is.

    Args:
        drafters: the parts; in a yaml names, or mappings with `_target_`.
        mode: merge: the trees as one, the first drafter's nodes first, nothing twice. fallback: the first tree that has
            `least_nodes` (drafters by match size their trees by how long it is), else the last. acceptance: the tree of
            the part that has been right for the most tokens a step, lately.
        max_nodes: most nodes of a tree, the root included; None for all that is proposed.
        least_nodes: see mode.
        decay: weight of the past in the running mean.

    Raises:
        ValueError: a setting is out of range, a part wants to see its own trees alone, or two have riders.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        mode: str = "merge",
        max_nodes: int | None = None,
        least_nodes: int = 4,
        decay: float = 0.8,
    ):
        if mode not in MODES:
            raise ValueError(f"hybrid.mode is {mode!r}; expected one of: {', '.join(MODES)}")
        if not drafters or least_nodes < 1 or not 0 <= decay < 1 or (max_nodes is not None and max_nodes < 2):
            raise ValueError(
                "hybrid needs drafters, least_nodes >= 1, decay from 0 to below 1 and max_nodes >= 2 or null; "
                f"got {len(drafters)} drafters, {least_nodes}, {decay} and {max_nodes}"
            )
        for part in drafters:
            if getattr(part, "reads_own_tree", False):
                raise ValueError(
                    f"{type(part).__name__} cannot be a part of hybrid: it has to see its own trees verified"
                )
        riding = [part.needs.riders for part in drafters if part.needs.riders]
        if len(riding) > 1:
            raise ValueError("hybrid got two drafters with riders in the target's forward; expected one at most")
        sizes = [part.needs.max_nodes for part in drafters]
        most = sum(sizes) - len(sizes) + 1 if mode == "merge" else max(sizes)
        layers = sorted({layer for part in drafters for layer in part.needs.hidden_layers})
        self.drafters, self.mode, self.least_nodes, self.decay = list(drafters), mode, least_nodes, decay
        self.needs = DraftNeeds(
            min(most, max_nodes or most),
            tuple(layers),
            on_device=all(part.needs.on_device for part in drafters),
            riders=sum(riding),
            scratch=max(part.needs.scratch for part in drafters),
        )

    def attach(self, target: Target) -> Hybrid:
        """See Drafter."""
        made = copy(self)
        made.drafters = [attach(part, target) for part in self.drafters]
        return made

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """The parts' buffers."""
        parts = [part.open(capacity, max_length, device) for part in self.drafters]
        return State(parts, torch.zeros(capacity, len(parts), device=device))

    def warmup(self, capacity: int) -> None:
        """That of the parts which have one."""
        for part in self.drafters:
            if warmup := getattr(part, "warmup", None):
                warmup(capacity)

    def forget(self) -> None:
        """See Drafter."""
        for part in self.drafters:
            forget(part)

    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Every part sees the prompts."""
        for part, own in zip(self.drafters, state.parts, strict=True):
            part.start(own, slots, prompts, prefill)
        state.scores[slots] = 0

    def propose(self, state: State, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """Every part proposes."""
        pairs = zip(self.drafters, state.parts, strict=True)
        trees = state.trees = [part.propose(own, roots, noise) for part, own in pairs]
        riders = next((tree.riders for tree in trees if tree.riders is not None), None)
        return replace(self._combine(state, trees), riders=riders)

    def proposals(self, state: State) -> dict[str, TokenTree]:
        """See Drafter. Parts of one class are numbered."""
        names = [type(part).__name__ for part in self.drafters]
        names = [f"{n} {names[:j].count(n) + 1}" if names.count(n) > 1 else n for j, n in enumerate(names)]
        return dict(zip(names, state.trees, strict=True))

    def _combine(self, state: State, trees: Sequence[TokenTree]) -> TokenTree:
        if self.mode == "merge":
            return union(trees, self.needs.max_nodes)
        if self.mode == "acceptance":
            return choose(trees, state.scores.argmax(1), self.needs.max_nodes)
        large = torch.stack([tree.sizes >= self.least_nodes for tree in trees], 1)  # [B, parts]
        large[:, -1] = True
        return choose(trees, large.int().argmax(1), self.needs.max_nodes)

    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Every part learns from the tree that was verified, and is judged by what it had proposed."""
        for part, own in zip(self.drafters, state.parts, strict=True):
            part.observe(own, tree, verdict, output)
        if self.mode == "acceptance":
            emitted, counts = verdict.emitted(tree), verdict.num_accepted
            right = torch.stack([count_right(t, tree.tokens[:, 0], emitted, counts) for t in state.trees], 1)
            state.scores.mul_(self.decay).add_(right, alpha=1 - self.decay)


def count_right(tree: TokenTree, roots: Tensor, emitted: Tensor, counts: Tensor) -> Tensor:
    """How many of a step's new tokens, the first `counts` `[B]` of `emitted` `[B, D]`, the tree had in a row: `[B]`."""
    text = torch.cat([roots[:, None], emitted], 1)  # [B, 1 + D]
    depth = torch.arange(text.shape[1], device=text.device).expand_as(text)
    keys = token_keys(text, depth).cumsum(1)
    deep = tree.depths.long()  # [B, N]
    on_text = path_keys(tree) == keys.gather(1, deep.clamp_max(emitted.shape[1]))
    return torch.where(on_text & (deep <= counts[:, None]), deep, 0).amax(1)
