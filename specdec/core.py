"""The nouns and contracts everything else is written against. Read this file first.

A step: `drafter.propose` gives a TokenTree, `target.verify` runs all its nodes in one forward pass, the acceptance rule
turns logits into a Verdict, `target.commit` keeps the accepted path's KV, and `drafter.observe` learns from it.
B is the number of slots: a sequence in every slot, or none (a tree of size 0).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from specdec.tree.token_tree import TokenTree

if TYPE_CHECKING:
    from specdec.sampling import DraftNoise, StepSampling


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the acceptance rule decided.

    Attributes:
        path: `[B, D]` int64, node ids from the root down, -1 padded. The root is always on it.
        num_accepted: `[B]` int32, length of the path, the root included; 0 for an empty slot. It is also the number of
            tokens the step emits: the path's tokens below the root, and `next_token`.
        next_token: `[B]` int64, the target's own token after the path: the root of the next tree.
    """

    path: Tensor
    num_accepted: Tensor
    next_token: Tensor

    @property
    def last(self) -> Tensor:
        """`[B, 1]` int64: the node that the path ends with; 0 for an empty slot."""
        return self.path.gather(1, (self.num_accepted.long() - 1).clamp_min(0)[:, None]).clamp_min(0)

    def emitted(self, tree: TokenTree) -> Tensor:
        """`[B, D]` int64: the step's new tokens in text order; entries from `num_accepted` on mean nothing."""
        following = torch.cat([self.path[:, 1:], self.path.new_full((len(self.path), 1), -1)], 1)  # [B, D]
        tokens = tree.tokens.gather(1, following.clamp_min(0))
        return torch.where(following >= 0, tokens, self.next_token[:, None])

    def read(self, tree: TokenTree) -> list[list[int]]:
        """Every slot's new tokens, none for an empty slot. The one read from the device of drafters on the host."""
        rows = torch.cat([self.num_accepted[:, None].long(), self.emitted(tree)], 1).tolist()
        return [tokens[:count] for count, *tokens in rows]


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """Results of one forward pass.

    Attributes:
        logits: `[B, N, V]` in the model's dtype; rows of padding nodes mean nothing.
        hidden: for every layer asked for, `[B, N, H]`: the output of that decoder layer; -1 is what the LM head reads.
        riders: `[B, R, V]`, logits of the tree's riders; None if it had none.
    """

    logits: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    riders: Tensor | None = None

    def hidden_at(self, nodes: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """The hidden states `[B, D, H]` of some `nodes` `[B, D]` int64, by layer; the root's for -1."""
        rows = nodes.clamp_min(0)[..., None]  # [B, D, 1]
        chosen = {layer: self.hidden[layer] for layer in layers}
        return {layer: x.gather(1, rows.expand(-1, -1, x.shape[-1])) for layer, x in chosen.items()}


@dataclass(frozen=True, slots=True)
class DraftNeeds:
    """What a drafter asks of the loop.

    Attributes:
        max_nodes: most nodes a proposed tree can have, the root included.
        hidden_layers: layers whose outputs `start` and `observe` must get.
        on_device: beside a target on a GPU, `propose` and `observe` read nothing to the host, and change nothing but
            the contents of the state's tensors: a CUDA graph may hold them.
        riders: most rows that a tree carries besides (see `specdec.tree.riders`).
        scratch: places behind a text that it writes to in the target's KV while it proposes.
    """

    max_nodes: int
    hidden_layers: tuple[int, ...] = ()
    on_device: bool = False
    riders: int = 0
    scratch: int = 0

    @property
    def room(self) -> int:
        """Places that have to be free behind a text."""
        return max(self.max_nodes + self.riders, self.scratch)


class Drafter(Protocol):
    """Proposes trees. A new method is one file in drafters/ and one yaml in conf/drafter/.

    The object holds weights and settings; everything of a request lives in the state that `open` returns, so one
    drafter serves many decoders. What it may have besides:
        vocab_size, hidden_size: the target must have the same.
        tokenizer: `loading.fingerprint` of the one it was made with, which must be the target's.
        synthetic: it knows the text beforehand, to study costs; results say so beside its name.
        reads_own_tree: `observe` wants the tree that this drafter proposed, or its first nodes, and no other one with
            the same root.
        takes_levels: `propose` has a last argument `levels`, None for all: no more are wanted below the roots. With 0
            nothing is drafted, and the drafter reads what it had to read when it is asked for more.
        beside(state, rows): called before `propose` where the coming pass has rows that are not its trees': chunks of
            prompts of other slots.
        proposals(state): the last trees of its parts, by name, where it puts several together: whose a node was.
        attach(target): gives this drafter as it works with that Target, whose embedding, head or layers it uses; raises
            a ValueError where it does not fit. Called once, when the two are put together, before `open`.
        forget(): what it keeps over requests is as it was when it was made; states that are open stay as they are.
        kv_bytes(capacity, max_length, device): of the KV that `open` makes for it on that device; `generate_many` gives
            the target's pages what this leaves of its memory.
        drafters: its parts, where it is made of others; what is asked of it is asked of them, too.
    """

    needs: DraftNeeds

    def open(self, capacity: int, max_length: int, device: torch.device) -> Any:
        """Buffers for `capacity` slots of at most `max_length` tokens. Trees must come out on `device`.

        The host sees the end of a text late: up to two steps may run past `max_length`. What is proposed there is
        never read, but it must not fail.
        """

    def start(self, state: Any, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Requests enter free slots. `prefill.hidden` holds the prompts' hidden states, `[len(slots), L, H]`.

        A prompt may be empty: in flight, the last token of what was given is the first root. It may also hold what a
        request had written before it lost its pages.
        """

    def propose(self, state: Any, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """A tree for every slot. `roots` `[B]` int64 is the last committed token, -1 for an empty slot (size 0)."""

    def observe(self, state: Any, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """What became of the last proposal. Not called before `propose`."""


def forget(drafter: Drafter) -> None:
    """Its `forget`, where it keeps anything over requests: the next ones find it as the first ones did."""
    if own := getattr(drafter, "forget", None):
        own()


def own_kv_bytes(drafter: Drafter, capacity: int, max_length: int, device: torch.device) -> int:
    """Of the KV that a drafter and its parts keep for themselves on `device`, once they are opened."""
    own = getattr(drafter, "kv_bytes", None)
    parts: Iterable[Drafter] = getattr(drafter, "drafters", ())
    found = int(own(capacity, max_length, device)) if own else 0
    return found + sum(own_kv_bytes(part, capacity, max_length, device) for part in parts)


class TrainableHead(Protocol):
    """A drafter's weights as `specdec train` sees them: an nn.Module that says what follows.

    Attributes:
        depth: tokens it predicts ahead of a root, K.
        hidden_layers: layers of the target that it reads, as in DraftNeeds.
    """

    depth: int
    hidden_layers: tuple[int, ...]

    def bind(self, embedding: Tensor, lm_head: Tensor) -> None:
        """The target's own, `[V, H]` each: used, but neither trained nor saved."""

    def predict(self, tokens: Tensor, hidden: Mapping[int, Tensor], anchors: Tensor) -> Tensor:
        """What it would draft at some places of known texts.

        Args:
            tokens: `[B, L]` int64.
            hidden: the target's, `[B, L, H]` for every layer asked for.
            anchors: `[B, A]` int64, places r of roots, 1 <= r and r + K < L.

        Returns:
            Logits `[B, A, K, V]`, -inf for tokens it never drafts. Entry k is for the token at r + 1 + k, made from
            tokens up to r + k (those drafted before it, had they been right) and hidden states up to r - 1.
        """


class AcceptanceRule(Protocol):
    """Decides which path of the tree becomes text.

    Attributes:
        lossless: the text is distributed as the target alone would write it.
        shared_noise: drafters that sample are given the target's own noise (else independent noise, and the rule wants
            `draft_probs`).
    """

    lossless: ClassVar[bool]
    shared_noise: ClassVar[bool]

    def __call__(self, tree: TokenTree, logits: Tensor, sampling: StepSampling) -> Verdict:
        """`logits` `[B, N, V]` of every node; see Verdict for what comes back."""


@runtime_checkable
class TreePolicy(Hashable, Protocol):
    """Gives a tree its shape, level by level, from log-probabilities alone. Knows no drafter.

    Attributes:
        depth: levels below the root.
        max_nodes: most nodes of a finished tree, the root included.
        fixed_shape: the shape never depends on the tokens. Only then may children be drawn at random for a rule that
            needs their distribution: keeping a drawn child because of what it is would bias the text.

    What it may have besides:
        replacement: such children are drawn with replacement, see TokenTree; without it, they are not.
    """

    @property
    def depth(self) -> int: ...

    @property
    def max_nodes(self) -> int: ...

    @property
    def fixed_shape(self) -> bool: ...

    def branching(self, level: int) -> int:
        """Children to draft for each node of the frontier at `level` (0 is the root)."""

    def grow(self, level: int, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Choose among the candidates below the frontier.

        Args:
            scores: `[B, F, K]` float32, log-probability of each candidate's whole path.

        Returns:
            Indices into the flattened `F * K` candidates: those kept `[B, M]`, ascending, and those to expand next, as
            indices into the kept ones `[B, F']`, ascending.
        """

    def prune(self, scores: Tensor) -> Tensor | None:
        """Indices `[B, max_nodes - 1]`, ascending, of the nodes to keep out of all kept `[B, M]`; None keeps all."""


def draws_with_replacement(policy: TreePolicy) -> bool:
    """Whether siblings that are drawn are drawn with replacement."""
    return bool(getattr(policy, "replacement", False))
