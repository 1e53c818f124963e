"""Parallel block drafting: one pass of a small head proposes a whole block (see `block_head`).

As in DFlash (arXiv 2602.06036) and JetSpec (arXiv 2606.18394): the head's cache holds the text's keys and values, made
from the target's hidden states as they come. The block's own rows go to the scratch places and are never committed.
What comes out is a distribution for every depth, from which the tree grows, the likeliest paths first (DDTree, arXiv
2604.12989), each node's corrected by the token before it where the head has a correction.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from specdec.attention import NAME, choose_backend
from specdec.cache import CacheView, LayerShape, Places, TreeCache
from specdec.core import DraftNeeds, TargetOutput, TreePolicy, Verdict
from specdec.drafters.block_head import BlockHead
from specdec.drafters.draft_model import fit_vocabulary
from specdec.heads import bound
from specdec.packing import pack_nodes
from specdec.sampling import DraftNoise
from specdec.target import Target
from specdec.tree.best_first import BestFirst
from specdec.tree.grow import Frontier, check_width, grow
from specdec.tree.shallow import first_levels
from specdec.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class State:
    """What the head knows of the texts.

    Attributes:
        cache: keys and values of the text before every root.
        before: `[B, H]`, the text's row right before every root.
        depths: `[B, R]` int32, places of a whole block's rows behind the root.
        words: `[B, R, W]` int64, which rows of the block each of them sees.
    """

    cache: TreeCache
    before: Tensor
    depths: Tensor
    words: Tensor


class Block:
    """See the module.

    Args:
        head: a trained head: zoo name, folder or hub id, or the head itself.
        tree: the shape of the drafts, at most as deep as the head's block.
        backend: of the head's attention.

    Raises:
        ValueError: there is no such head, or the tree is deeper than its block.
    """

    takes_levels: ClassVar[bool] = True

    def __init__(self, head: str | Path | BlockHead, tree: TreePolicy | None = None, backend: str = "auto"):
        self.head = head if isinstance(head, BlockHead) else BlockHead.load(head)
        self.policy = tree if tree is not None else BestFirst(depth=self.head.depth)
        if self.policy.depth > self.head.depth:
            raise ValueError(
                f"the tree is {self.policy.depth} levels deep, the head predicts {self.head.depth} tokens; "
                f"use a tree of depth {self.head.depth} or less"
            )
        self.backend = backend
        self.vocab_size, self.hidden_size = self.head.vocab_size, self.head.hidden_size
        check_width(self.policy, self.vocab_size)
        self.needs = DraftNeeds(self.policy.max_nodes, tuple(dict.fromkeys(self.head.hidden_layers)), on_device=True)

    def attach(self, target: Target) -> Block:
        """See Drafter.

        Raises:
            ValueError: the target has another vocabulary, or its embedding another width than its hidden states.
        """
        width = target.model.get_input_embeddings().weight.shape[1]
        if width != self.hidden_size:
            raise ValueError(
                f"the target's embedding is {width} wide, its hidden states {self.hidden_size}; a block head needs a "
                "target where both are the same"
            )
        if self.head.correction is not None and target.vocab_size != self.vocab_size:
            raise ValueError(
                f"the head was made for a vocabulary of {self.vocab_size} tokens, the target has {target.vocab_size}; "
                "use a head made for this target"
            )
        made = copy(self)
        made.head = bound(self.head, target)
        return made

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """A cache with room for texts and a block behind each."""
        head, rows = self.head, self.head.rows_for(self.policy.depth)
        before = torch.zeros(capacity, head.hidden_size, dtype=head.dtype, device=device)
        block = TokenTree.chain(torch.zeros(capacity, rows, dtype=torch.int64, device=device))
        words = block.words if head.config.causal else block.words[:, -1:].repeat(1, rows, 1)
        return State(self._cache(capacity, max_length, device), before, block.depths, words)

    def _cache(self, capacity: int, max_length: int, device: torch.device) -> TreeCache:
        head = self.head
        shape = LayerShape(head.decoder.num_key_value_heads, head.decoder.head_dim, head.decoder.head_dim, head.dtype)
        room = max_length + 2 * self.needs.max_nodes + head.rows_for(self.policy.depth)
        return TreeCache([shape] * len(head.layers), capacity, room, device)

    def kv_bytes(self, capacity: int, max_length: int, device: torch.device) -> int:
        """See Drafter."""
        return self._cache(capacity, max_length, torch.device("meta")).nbytes

    @torch.inference_mode()
    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """The prompts' hidden states go to the cache."""
        device = state.cache.device
        which = torch.tensor(slots, device=device)
        counts = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32, device=device)
        state.cache.lengths[which], state.before[which] = 0, 0
        self._append(state, which, self.head.fuse(prefill.hidden), counts)

    @torch.inference_mode()
    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """The accepted nodes' hidden states go to the cache."""
        path, counts = verdict.path, verdict.num_accepted
        if path.device.type == "cpu":
            path = path[:, : int(counts.max())]
        fused = self.head.fuse(output.hidden_at(path, self.head.hidden_layers))  # [B, D, H]
        self._append(state, torch.arange(len(path), device=path.device), fused, counts)

    def _append(self, state: State, slots: Tensor, fused: Tensor, counts: Tensor) -> None:
        """The first `counts` `[b]` rows of `fused` `[b, D, H]` follow the texts in `slots` `[b]`.

        The others are written behind them, where nobody reads. So is what is far behind the end of a text, which the
        host may see late.
        """
        width = fused.shape[1]
        if width == 0:
            return
        cache, head = state.cache, self.head
        positions = cache.lengths[slots][:, None] + torch.arange(width, device=slots.device)  # [b, D]
        positions = positions.clamp_max(cache.room - 1)
        view = CacheView(cache, Places(slots.repeat_interleave(width), positions.flatten()))
        for layer, (key, value) in enumerate(head.context(fused.flatten(0, 1)[None], positions.flatten()[None])):
            view.update(key, value, layer)
        last = (counts.long() - 1)[:, None]  # [b, 1]
        newest = fused.gather(1, last.clamp_min(0)[..., None].expand(-1, -1, fused.shape[-1]))[:, 0]
        state.before[slots] = torch.where(last >= 0, newest, state.before[slots])
        cache.append(slots, counts)
        cache.lengths.clamp_(max=cache.room - state.depths.shape[1])

    @torch.inference_mode()
    def propose(self, state: State, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        """Run the block, then grow a tree, of the policy's first `levels` if that is not None."""
        if levels == 0:
            return TokenTree.roots(roots)
        head, policy = self.head, first_levels(self.policy, levels)
        hidden = self._run(state, roots, policy.depth)  # [B, K, H]
        logits, gates = head.logits(hidden), head.gates(hidden)  # [B, K, V], [B, K, rank]

        def after(level: int, tokens: Tensor) -> Tensor:
            """Logits `[B, F, V]` of nodes at this depth with these tokens `[B, F]`."""
            found = head.correct(logits[:, level, None], None if gates is None else gates[:, level, None], tokens)
            return fit_vocabulary(found, noise.vocab_size).expand(-1, tokens.shape[1], -1)

        def expand(frontier: Frontier) -> Tensor:
            return after(frontier.level, frontier.tokens)

        root_logits = after(0, roots.clamp_min(0)[:, None])[:, 0]
        return grow(policy, roots, root_logits, expand, noise).tree

    def _run(self, state: State, roots: Tensor, depth: int) -> Tensor:
        """A block that drafts `depth` tokens behind every text: `[B, depth, H]` of the rows that predict them."""
        head, cache, rows = self.head, state.cache, self.head.rows_for(depth)
        counts = (roots >= 0).to(torch.int32) * rows
        backend = choose_backend(self.backend, cache.device)
        packed = pack_nodes(cache, state.depths[:, :rows], state.words[:, :rows], counts, 0, backend)
        if packed is None:
            return state.before.new_zeros(len(roots), depth, head.hidden_size)
        x = packed.pick(head.block(roots.clamp_min(0), state.before, rows))  # [R, H]
        view = CacheView(cache, packed.places)
        found = head.run(x[None], packed.positions[None], view, NAME, attention_mask=None, specdec_rows=packed.visible)
        first = 0 if head.config.from_root else 1
        return packed.spread(found[0])[:, first : first + depth]
