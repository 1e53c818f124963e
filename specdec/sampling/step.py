"""The sampler at one step: rules draw the target's tokens with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec import noise
from specdec.sampling.draft import DraftNoise
from specdec.tree.token_tree import WORD_BITS, TokenTree

if TYPE_CHECKING:
    from specdec.sampling.sampler import Sampler


class StepSampling:
    """Draws for one step. The token drawn at a node of depth d stands at position `positions + d + 1`."""

    def __init__(self, sampler: Sampler, positions: Tensor, max_depth: int, slots: Sequence[int]):
        self._sampler = sampler
        self._slots = slots
        self._positions = positions
        self._max_depth = max_depth
        self._keys: dict[int, Tensor] = {}
        self._chances: dict[int, Tensor] = {}  # depth -> [B, children]

    @property
    def raw(self) -> bool:
        """Whether every slot takes the most likely token of unprocessed logits."""
        return self._sampler.raw

    def keys(self, stream: int, depth: int) -> Tensor:
        """`[2, B]` int32."""
        if stream not in self._keys or depth >= self._keys[stream].shape[2]:  # what is pruned may have been deeper
            steps = torch.arange(1, max(self._max_depth, 2 * depth) + 2, device=self._positions.device)
            self._keys[stream] = noise.keys(self._sampler.seeds, self._positions[:, None] + steps, stream)
        return self._keys[stream][:, :, depth]

    def draft_keys(self, depth: int, count: int) -> Tensor:
        """`[2, B, count]` int32, for `count` nodes of a drafter's frontier at `depth`, or all their children: its own
        noise, not the target's.

        It belongs to the step and the node, not to the position. A rule that judges from the leaves up has looked at
        drafts below the place where the step ends, and below refused siblings: noise that came again at the same
        position, or below another sibling, would no longer be independent of what was decided.
        """
        nodes = torch.arange(count, device=self._positions.device) + (depth << 16)
        return noise.keys(self.keys(noise.DRAFT_STREAM, 0), nodes[None], noise.DRAFT_STREAM)

    def draw(self, logits: Tensor, depth: int, path: Tensor) -> Tensor:
        """The target's own token after nodes at `depth`: `[B]` int64.

        Args:
            logits: `[B, V]`.
            depth: of the nodes.
            path: `[B, depth]` int64, drafted tokens from below the root to each node; -1 where a walk has stopped.
        """
        if self.raw:
            return logits.argmax(-1)
        return self._argmax(self._process(logits, path), depth, noise.TARGET_STREAM)

    def probs(self, logits: Tensor, path: Tensor) -> Tensor:
        """The target's distribution: `[B, V]` float32, one token's at temperature 0. Arguments as for `draw`."""
        return self._distribution(self._process(logits, path))

    def _process(self, logits: Tensor, path: Tensor) -> Tensor:
        """`[B, V]` float32. Users' processors are called where a walk goes on, and nowhere else."""
        slots = self._slots
        if self._sampler.has_processors and path.shape[1]:
            slots = [slot for slot, last in enumerate(path[:, -1].tolist()) if last >= 0 and slot in slots]
        return self._sampler.process(logits[:, None], path[:, None], slots)[:, 0]

    def draw_from(self, probs: Tensor, depth: int) -> Tensor:
        """A draw from unnormalised `probs` `[B, V]`, as for a residual: `[B]` int64."""
        return self._argmax(probs.log(), depth, noise.RESIDUAL_STREAM)

    def accept(self, probability: Tensor, depth: int, turn: int) -> Tensor:
        """`[B]` bool, true with `probability` `[B]`, for the child tried in `turn` below a node at `depth`.

        A rule that may accept less than it has looked at counts all its turns at depth 0, whose position no other step
        has, and draws from what is left there, too.
        """
        if depth not in self._chances or turn >= self._chances[depth].shape[1]:
            count = max(self._max_depth, 2 * turn)
            self._chances[depth] = noise.uniform(self.keys(noise.ACCEPT_STREAM, depth), count)
        return self._chances[depth][:, turn] < probability

    @property
    def at_once(self) -> bool:
        """Whether rules use kernels that read settings on the device: on a GPU, where a walk in torch would either ask
        the host how far it has come or go on to the depth of the tree. Users' processors are Python and want the walk.
        """
        return self._positions.device.type != "cpu" and not self._sampler.has_processors

    @property
    def positions(self) -> Tensor:
        """`[B]` int32, of the roots."""
        return self._positions

    @property
    def settings(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """seeds `[2, B]`, temperature, top_k, top_p, min_p `[B]`: what those kernels want to know, in fixed buffers."""
        sampler = self._sampler
        return sampler.seeds, sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p

    def penalised(self, tree: TokenTree, logits: Tensor) -> Tensor:
        """`[B, N, V]` logits of all nodes after the repetition penalty, each with its own path as its history."""
        if not self._sampler.penalised:
            return logits
        place = torch.arange(tree.max_nodes, device=logits.device)
        on_path = (tree.words[..., place // WORD_BITS] >> (place % WORD_BITS)) & 1 == 1  # [B, N, N]
        on_path[..., 0] = False  # the root is text
        path = torch.where(on_path, tree.tokens[:, None], -1)
        return self._sampler.penalise(logits.float(), path)

    def draft_noise(self, shared: bool) -> DraftNoise:
        """What a drafter draws with: the target's noise (`shared`) or its own."""
        return DraftNoise(self, shared)

    def _argmax(self, scores: Tensor, depth: int, stream: int) -> Tensor:
        greedy = scores.argmax(-1)
        if self._sampler.all_greedy:
            return greedy
        drawn = (scores + noise.gumbel(self.keys(stream, depth), scores.shape[-1])).argmax(-1)
        return torch.where(self._sampler.greedy, greedy, drawn)

    def _distribution(self, scores: Tensor) -> Tensor:
        """`[B, ..., V]` scores to probabilities."""
        probs = scores.softmax(-1)
        if not self._sampler.some_greedy:
            return probs
        one_hot = torch.zeros_like(probs).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
        greedy = self._sampler.greedy.view(-1, *[1] * (probs.ndim - 1))
        return torch.where(greedy, one_hot, probs)
