"""Any drafter, with trees as large as they have paid lately, and none where speculation would lose.

Running acceptance by node and a measured cost curve say how many of the next trees' first nodes to verify: one budget
for all slots, which gets smaller the more of them there are and the more rows of prompts are read beside them (see
`specdec.tree.budget`). Where none pays, nothing is drafted but for a try now and then, out of an allowance.

Guarantee: lossless with every rule that is. A tree's size depends on what became of trees before, never on what is
drawn in this step. Under a rule whose text depends on drafts (`DraftNoise.shared` is False) a slot decides by its own
past alone, as if all slots did the same and nothing was read beside them: slots whose requests have the same seed share
their noise, so that another slot's past, or when its request came, may be this one's future, and a size that knew it
would bias the text.
Under a rule with shared noise, whose text is the same whatever is drafted, all slots decide together, and learn from
each other and from earlier requests.

Sizes are decided on the host, which reads a verdict a step: trees of a fixed shape in a CUDA graph would cost what full
ones cost. On a GPU a drafter that would be part of the step's graph is run outside of it here.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from specdec.core import Drafter, TargetOutput, Verdict, forget
from specdec.sampling import DraftNoise
from specdec.target import Target, attach
from specdec.tree.budget import StepCost, budget
from specdec.tree.cost import CostCurve, Curve, measured_draft_cost, sequences_curve
from specdec.tree.past import Past
from specdec.tree.prefix import first_nodes
from specdec.tree.token_tree import TokenTree

TOGETHER_DECAY = 0.99  # of what all slots have seen: many of them a step


@dataclass(slots=True)
class Slot:
    """A request's.

    Attributes:
        past: what became of its trees, for rules under which it decides alone.
        right: tokens of its last draft that were; 0 where there was none.
    """

    past: Past
    right: int = 0


@dataclass(slots=True)
class State:
    """What became of the trees.

    Attributes:
        inner: the drafter's state.
        capacity: slots.
        levels: by number of nodes, levels that have to be drafted for them; the drafter's, if it remembers.
        together: what became of all slots' trees.
        slots: those with a request.
        beside: rows of the coming pass that are not these slots'.
        shared: whether the last trees were for a rule with shared noise.
        drawn: whether the last drafts were drawn at random, for a rule that wants to know from what.
    """

    inner: Any
    capacity: int
    levels: list[int]
    together: Past
    slots: dict[int, Slot] = field(default_factory=dict)
    beside: int = 0
    shared: bool = True
    drawn: bool = False


class Adaptive:
    """See the module.

    Args:
        drafter: any; in a yaml a name, or a mapping with `_target_`.
        curve: what a step costs: a file of `specdec bench curve`, what a row adds to the first one's cost, or None for
            nothing.
        draft_cost: of drafting a level, in steps of plain decoding (of a whole proposal, where a drafter leaves out
            all levels or none); None for what the curve's file says, or 0.
        allowance: for tries, as a share of what plain decoding costs.
        decay: weight of the past in a slot's own running means.
        remember: keep what was seen for later requests and other decoders.

    Raises:
        ValueError: a setting is out of range, the curve is none, or the drafter has riders, which run with any tree.
    """

    reads_own_tree: ClassVar[bool] = True  # nodes are judged by their numbers

    def __init__(
        self,
        drafter: Drafter,
        curve: Curve = None,
        draft_cost: float | None = None,
        allowance: float = 0.02,
        decay: float = 0.95,
        remember: bool = True,
    ):
        self._takes_levels = bool(getattr(drafter, "takes_levels", False))
        self._by_level = self._takes_levels and hasattr(drafter, "policy")  # the others leave out all or nothing
        if draft_cost is None:
            draft_cost = measured_draft_cost(curve, whole=not self._by_level)
        if draft_cost < 0 or allowance < 0 or not 0 < decay < 1:
            raise ValueError(
                "adaptive needs draft_cost >= 0, allowance >= 0 and decay between 0 and 1; "
                f"got {draft_cost}, {allowance} and {decay}"
            )
        if drafter.needs.riders:
            raise ValueError(
                f"adaptive cannot go around {type(drafter).__name__}: its {drafter.needs.riders} riders run at every "
                "step, so that no step costs what plain decoding does; use it by itself"
            )
        self.drafters = [drafter]  # looked over like the parts of `hybrid`
        self.needs = replace(drafter.needs, on_device=False)
        self.cost = StepCost(CostCurve.make(curve), draft_cost, sequences_curve(curve))
        self.allowance, self.decay = allowance, decay
        self._remember, self._together = remember, Past(TOGETHER_DECAY)
        self._levels = self._unknown_levels()
        # Under own noise nothing is learnt from others, so that levels are the most that nodes can lie in.
        policy: Any = getattr(drafter, "policy", None)
        deepest = policy.depth if self._by_level else 1
        self._most_levels = [self._levels[0], *(min(node, deepest) for node in range(1, self.needs.max_nodes))]

    def _unknown_levels(self) -> list[int]:
        return [0 if self._takes_levels else 1, *[1] * (self.needs.max_nodes - 1)]

    def _levels_of(self, state: State) -> list[int]:
        """By number of nodes, levels that have to be drafted for them."""
        return state.levels if state.shared else self._most_levels

    @property
    def drafter(self) -> Drafter:
        """The one within."""
        return self.drafters[0]

    def attach(self, target: Target) -> Adaptive:
        """See Drafter."""
        made = copy(self)
        made.drafters = [attach(self.drafter, target)]
        return made

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """The drafter's buffers, and nothing seen."""
        inner = self.drafter.open(capacity, max_length, device)
        if self._remember:
            return State(inner, capacity, self._levels, self._together)
        return State(inner, capacity, list(self._levels), Past(TOGETHER_DECAY))

    def warmup(self, capacity: int) -> None:
        """That of the drafter, if it has one."""
        if warmup := getattr(self.drafter, "warmup", None):
            warmup(capacity)

    def forget(self) -> None:
        """See Drafter; the one within forgets, too."""
        forget(self.drafter)
        self._together.forget()
        self._levels[:] = self._unknown_levels()

    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Requests begin without a past of their own."""
        self.drafter.start(state.inner, slots, prompts, prefill)
        state.slots.update((slot, Slot(Past(self.decay))) for slot in slots)

    def beside(self, state: State, rows: int) -> None:
        """See Drafter."""
        state.beside = rows

    def propose(self, state: State, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """The first nodes of the drafter's trees."""
        state.shared = noise.shared
        sizes = self._sizes(state, [slot for slot, root in enumerate(roots.tolist()) if root >= 0])
        state.beside = 0
        largest = max(sizes)
        tree = self._draft(state, roots, noise, largest)
        if min(sizes) >= tree.max_nodes:
            return tree
        counts = torch.tensor(sizes, dtype=torch.int32, device=tree.sizes.device)
        return first_nodes(tree, counts, min(largest, tree.max_nodes))

    def proposals(self, state: State) -> dict[str, TokenTree]:
        """See Drafter: those of the drafter within, if it has any."""
        found: dict[str, TokenTree] = getattr(self.drafter, "proposals", lambda _: {})(state.inner)
        return found

    def _sizes(self, state: State, live: list[int]) -> list[int]:
        """Of every slot's tree, on the host. Who has ended since the last step is not `live`."""
        sizes = [1] * state.capacity
        levels = self._levels_of(state)
        for group in [live] * bool(live) if state.shared else [[slot] for slot in live]:
            rights = [state.slots[slot].right for slot in group]
            if state.shared:
                chosen = budget(rights, state.together, levels, self.cost, self.allowance, 1, state.beside)
            else:
                past = state.slots[group[0]].past
                chosen = budget(rights, past, levels, self.cost, self.allowance, state.capacity)
            for slot, size in zip(group, chosen, strict=True):
                sizes[slot] = size
        return sizes

    def _draft(self, state: State, roots: Tensor, noise: DraftNoise, largest: int) -> TokenTree:
        if not self._takes_levels:
            return self.drafter.propose(state.inner, roots, noise)
        levels = None if largest == self.needs.max_nodes else self._levels_of(state)[largest - 1]
        inner: Any = self.drafter
        tree: TokenTree = inner.propose(state.inner, roots, noise, levels=levels)
        if levels is None and self._by_level:
            for node, depth in enumerate(tree.depths.amax(0).cummax(0).values.tolist()):
                state.levels[node] = depth
        if levels != 0:
            state.drawn = tree.draft_probs is not None
        elif state.drawn:  # as it would be beside slots with drafts: rules draw otherwise where nothing is
            nothing = torch.zeros(state.capacity, 1, noise.vocab_size, device=tree.tokens.device)
            shape = tree.depths, tree.words
            return replace(tree, draft_probs=nothing).with_shape(*shape)
        return tree

    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """The drafter learns, and nodes are judged; who has ended is forgotten."""
        self.drafter.observe(state.inner, tree, verdict, output)
        rows = torch.cat([verdict.num_accepted[:, None].long(), tree.sizes[:, None].long(), verdict.path], 1).tolist()
        for slot, (count, size, *path) in enumerate(rows):
            if not count:
                state.slots.pop(slot, None)
                continue
            own = state.slots[slot]
            past = state.together if state.shared else own.past
            past.observe(own.right, path[:count], size)
            own.right = count - 1
