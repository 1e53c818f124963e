"""A smaller causal language model writes the draft (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

The draft model keeps its own KV in a TreeCache. Before it drafts it reads what it has not seen: the root, and the last
accepted token if that one had been a leaf, which is proposed without being run. Then every level of the tree is one
forward over that level's nodes; their KV waits in the scratch places until the verdict says which to keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core import DraftNeeds, TargetOutput, TreePolicy, Verdict
from specdec.sampling import DraftNoise
from specdec.target import Target
from specdec.tree.grow import Expand, Frontier, check_width, count_expanded, grow
from specdec.tree.levels import Levels
from specdec.tree.shallow import first_levels
from specdec.tree.static import chain
from specdec.tree.token_tree import TokenTree


@dataclass(slots=True)
class State:
    """The draft model's KV, and what lies between two proposals.

    Attributes:
        model: the draft model with its cache.
        unread: `[B]` int64, an accepted token that the draft model has not read; -1 for none.
        expanded: `[B, N]` int64, scratch place of every node of the last tree, -1 if it was not run.
        device: of the target, where trees go.
        skipped: `[B]` int64 each, roots of the steps since then for which nothing was drafted, unread as well.
    """

    model: Target
    unread: Tensor
    expanded: Tensor
    device: torch.device
    skipped: list[Tensor] = field(default_factory=list)


class DraftModel:
    """See the module.

    Args:
        model: any causal LM with the target's vocabulary, on its own device and in its own dtype. Vocabularies may be
            padded differently: what the target does not have is cut, and what only it has is never drafted.
        tree: the shape of the drafts; a chain of 4 by default.
        backend: of the draft model's attention.
        compile: run the draft model's levels as compiled graphs (see Target). For a draft model on the CPU; on a GPU
            the target's `compile` captures the whole step.

    Raises:
        ValueError: the model cannot be used (see Target).
    """

    reads_own_tree: ClassVar[bool] = True  # a verdict tells which of its nodes' KV to keep
    takes_levels: ClassVar[bool] = True

    def __init__(
        self, model: PreTrainedModel, tree: TreePolicy | None = None, backend: str = "auto", compile: bool = False
    ):
        self.policy = tree if tree is not None else chain(4)
        self.model = model
        self.backend, self.compile = backend, compile and model.device.type == "cpu"
        self.vocab_size = Target(model, backend=backend).vocab_size  # looks the model over, too
        check_width(self.policy, self.vocab_size)
        self.needs = DraftNeeds(max_nodes=self.policy.max_nodes, on_device=model.device.type != "cpu")
        self._expanded = count_expanded(self.policy)

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """A cache with room for every node that growing a tree can run."""
        model = Target(self.model, backend=self.backend, compile=self.compile)
        model.open(capacity, max_length, self._expanded + 2)
        unread = torch.full((capacity,), -1, dtype=torch.int64, device=model.device)
        expanded = torch.full((capacity, self.needs.max_nodes), -1, dtype=torch.int64, device=model.device)
        return State(model, unread, expanded, device)

    def kv_bytes(self, capacity: int, max_length: int, device: torch.device) -> int:
        """See Drafter."""
        model = Target(self.model, backend=self.backend)
        return would_open(model, capacity, max_length, self._expanded + 2, device)

    def warmup(self, capacity: int) -> None:
        """With compile=True: compile now what proposals for `capacity` slots need."""
        Target(self.model, backend=self.backend, compile=self.compile).warmup(capacity, self._expanded + 2)

    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """The draft model reads the prompts."""
        for slot in slots:
            state.model.release(slot)
        state.model.prefill(slots, [[min(t, self.vocab_size - 1) for t in prompt] for prompt in prompts])
        for unread in (state.unread, *state.skipped):
            unread[slots] = -1

    def propose(self, state: State, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        """Read what is new, then grow a tree, of the policy's first `levels` if that is not None."""
        if levels == 0:
            state.skipped.append(roots.to(state.model.device, copy=True))
            return TokenTree.roots(roots)
        model = state.model
        roots = roots.to(model.device)
        if model.device.type != "cpu":  # there dead rows run too: not over the text of one that has ended
            model.lengths.mul_(roots >= 0)
        self._catch_up(state)
        logits = fit_vocabulary(self._read(state, roots).to(state.device), noise.vocab_size)
        run = run_levels(model, roots >= 0, self._expanded)

        def expand(frontier: Frontier) -> Tensor:
            return fit_vocabulary(run(frontier).to(state.device), noise.vocab_size)

        policy = first_levels(self.policy, levels)
        grown = grow(policy, roots.to(state.device), logits, expand, noise)
        state.expanded[:, : grown.expanded.shape[1]] = grown.expanded
        return grown.tree

    def _catch_up(self, state: State) -> None:
        """Read what was written while nothing was drafted."""
        if not state.skipped:
            return
        rows = torch.stack([state.unread, *state.skipped], 1).clamp_max(self.vocab_size - 1).tolist()  # [B, 1 + steps]
        texts = {slot: [t for t in row if t >= 0] for slot, row in enumerate(rows)}
        behind = [slot for slot, text in texts.items() if text]
        if behind:
            state.model.prefill(behind, [texts[slot] for slot in behind])
        state.unread.fill_(-1)
        state.skipped.clear()

    def _read(self, state: State, roots: Tensor) -> Tensor:
        """Commit the unread token and the root to the draft model's text; its logits `[B, V]` after the root."""
        model, rows = state.model, torch.arange(len(roots), device=roots.device)
        live = roots >= 0
        behind = live & (state.unread >= 0)  # [B]; a request that has ended may have left something unread
        if model.device.type == "cpu" and not behind.any():
            chained = TokenTree.roots(roots)
            last = torch.zeros_like(rows)
        else:
            first = torch.where(behind, state.unread, roots)
            chained = TokenTree.chain(torch.stack([first, roots], 1))
            last = behind.long()
        counts = live.to(torch.int32) * (last + 1).to(torch.int32)
        output = model.extend(known(model, chained.tokens), chained.depths, chained.words, counts)
        model.cache.append(rows, counts)
        state.unread.fill_(-1)
        return output.logits[rows, last]

    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """Keep the KV of accepted nodes that were run; remember an accepted leaf, which was not."""
        path = verdict.path[:, 1:].to(state.model.device)  # [B, D - 1], without the root, which is committed
        count = verdict.num_accepted.to(state.model.device) - 1  # [B], -1 for an empty slot
        if path.shape[1] == 0:
            return
        places = torch.where(path >= 0, state.expanded.gather(1, path.clamp_min(0)), -1)
        run = (places >= 0).sum(-1, dtype=torch.int32)  # [B]
        state.model.cache.commit(places, run)
        leaf = tree.tokens.gather(1, verdict.last).to(path.device)  # [B, 1]
        state.unread.copy_(torch.where(count > run, leaf[:, 0], -1))


def would_open(model: Target, capacity: int, max_length: int, nodes: int, device: torch.device) -> int:
    """Bytes of KV on `device` that `model`, which is new and opens nothing else, takes for so much; see Target.open."""
    if model.device != device:
        return 0
    model.device = torch.device("meta")  # shapes without memory
    model.open(capacity, max_length, nodes)
    return model.cache.nbytes


def run_levels(model: Target, live: Tensor, nodes: int) -> Expand:
    """For `grow`: runs one level of a tree after the other behind the texts of a draft model.

    Args:
        model: its cache keeps the levels' KV in the scratch places, in the order in which nodes are expanded.
        live: `[B]` bool, slots to run.
        nodes: most that are expanded, see `count_expanded`.

    Returns:
        A function of a frontier; its logits `[B, F, V]` are on the model's device.
    """
    counts, places = live.to(torch.int32), Levels(len(live), nodes, model.device)

    def expand(frontier: Frontier) -> Tensor:
        place, tokens = places.place(frontier), known(model, frontier.tokens).to(model.device)
        width = tokens.shape[1]
        return model.extend(tokens, place.depths, place.words, counts * width, first=place.first).logits

    return expand


def known(model: Target, tokens: Tensor) -> Tensor:
    """Tokens that only the target knows are read as the draft model's last one."""
    return tokens.clamp_max(model.vocab_size - 1)


def fit_vocabulary(logits: Tensor, vocab_size: int) -> Tensor:
    """`[..., V']` cut to `[..., vocab_size]`, or filled up with -inf."""
    missing = vocab_size - logits.shape[-1]
    return torch.nn.functional.pad(logits, (0, missing), value=float("-inf")) if missing else logits
