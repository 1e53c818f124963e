"""EAGLE: one decoder layer over the target's own features writes the draft (see `eagle_head` for papers and pairs).

The head has a cache of its own, in which a text's pairs lie as their features came from the target. So what a step
accepts is run again, with the features that the target put out meanwhile: all accepted pairs as a chain, the root's the
last, at the beginning of the next proposal. Then every level of the tree is one pass over that level's nodes, whose
features are the head's guesses; their keys and values are left behind.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.attention import choose_backend, plugged_in
from specdec.cache import CacheView, LayerShape, TreeCache
from specdec.core import DraftNeeds, TargetOutput, TreePolicy, Verdict
from specdec.drafters.draft_model import fit_vocabulary
from specdec.drafters.eagle_head import EagleHead
from specdec.heads import bound
from specdec.kernels.tree_attention import Backend
from specdec.packing import Rows, pack_nodes, prefill_pieces
from specdec.sampling import DraftNoise
from specdec.target import Target
from specdec.tree.best_first import BestFirst
from specdec.tree.grow import Frontier, check_width, count_expanded, grow
from specdec.tree.levels import Levels
from specdec.tree.shallow import first_levels
from specdec.tree.token_tree import TokenTree


@dataclass(slots=True)
class State:
    """The head's keys and values, and the pairs that wait for the next proposal. D is the tree's depth.

    Attributes:
        cache: a text's pairs; pair number i, of token i + 1, is at place i.
        tokens: `[B, D + 1]` int64; the last one of a slot is its root, and written when that is known.
        features: `[B, D + 1, E]`, each of the place before its token.
        counts: `[B]` int32, how many pairs wait.
        longest: tokens of a text, at most: what lies behind them is never read.
        waiting: how many pairs wait in any slot, at most, as far as the host knows. A whole step in a CUDA graph needs
            none of it: there `propose` runs all that waits, so that it is 0 at every `observe`. It counts up where
            proposals of 0 levels run nothing, and those are never captured.
    """

    cache: TreeCache
    tokens: Tensor
    features: Tensor
    counts: Tensor
    longest: int
    waiting: int = 0


class Eagle:
    """See the module.

    Args:
        head: a trained head: zoo name, folder or hub id, ours or another project's (see `eagle_formats`), or itself.
        tree: the shape of the drafts; EAGLE-2's best-first tree by default.
        target_layers: decoder layers of the target, for heads whose files do not say which of them they read.
        backend: of the head's attention.

    Raises:
        ValueError: there is no such head, or it drafts fewer tokens than a node has children.
    """

    takes_levels: ClassVar[bool] = True

    def __init__(
        self,
        head: str | Path | EagleHead,
        tree: TreePolicy | None = None,
        target_layers: int | None = None,
        backend: str = "auto",
    ):
        self.head = head if isinstance(head, EagleHead) else EagleHead.load(head, target_layers)
        self.policy = tree if tree is not None else BestFirst()
        self.backend = backend
        self.vocab_size, self.hidden_size = self.head.vocab_size, self.head.hidden_size
        self.needs = DraftNeeds(self.policy.max_nodes, self.head.hidden_layers, on_device=True)
        check_width(self.policy, self.head.config.draft_vocab_size)
        self._expanded = count_expanded(self.policy)

    def attach(self, target: Target) -> Eagle:
        """See Drafter.

        Raises:
            ValueError: the target has another width, vocabulary or number of layers than the head's.
        """
        config, model = self.head.config, target.model.config.get_text_config()
        layers = model.num_hidden_layers
        if config.target_layers not in (None, layers):
            raise ValueError(
                f"the head was made for a target of {config.target_layers} layers, this one has {layers}; "
                "use one made for this target"
            )
        made = copy(self)
        made.head = bound(self.head, target)
        return made

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """A cache with room for every node that growing a tree can run, behind what waits."""
        width = self.policy.depth + 1
        return State(
            self._cache(capacity, max_length, device),
            torch.zeros(capacity, width, dtype=torch.int64, device=device),
            torch.zeros(capacity, width, self.head.decoder.hidden_size, dtype=self.head.dtype, device=device),
            torch.zeros(capacity, dtype=torch.int32, device=device),
            max_length,
        )

    def _cache(self, capacity: int, max_length: int, device: torch.device) -> TreeCache:
        layer = self.head.decoder
        shape = LayerShape(layer.num_key_value_heads, layer.head_dim, layer.head_dim, self.head.dtype)
        return TreeCache([shape], capacity, max_length + self.policy.depth + 1 + self._expanded, device)

    def kv_bytes(self, capacity: int, max_length: int, device: torch.device) -> int:
        """See Drafter."""
        return self._cache(capacity, max_length, torch.device("meta")).nbytes

    @torch.inference_mode()
    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """Run the prompts' pairs. The root's waits: its feature is that of the prompt's last token, if there is one."""
        features = self.head.fuse(prefill.hidden)  # [b, L, E]
        for slot in slots:
            state.cache.release(slot)
        # the first token has no pair
        for piece in prefill_pieces(state.cache, slots, prompts, self._backend(state), first=1):
            ends = [piece.first - 1 + count for count in piece.counts]
            before = [features[i, piece.first - 1 : end] for i, end in zip(piece.prompts, ends, strict=True)]
            self._run_rows(state, piece.rows, piece.tokens, torch.cat(before))
        for i, slot in enumerate(slots):
            state.counts[slot] = min(len(prompts[i]), 1)
            if prompts[i]:
                state.features[slot, 0] = features[i, len(prompts[i]) - 1]
        state.waiting = max(state.waiting, 1)

    @torch.inference_mode()
    def propose(self, state: State, roots: Tensor, noise: DraftNoise, levels: int | None = None) -> TokenTree:
        """Run what waits, then grow a tree, of the policy's first `levels` if that is not None."""
        live = roots >= 0
        last = (state.counts.long() - 1).clamp_min(0)[:, None]  # [B, 1]
        state.tokens.scatter_(1, last, roots.clamp_min(0)[:, None])
        if levels == 0:
            return TokenTree.roots(roots)
        if state.cache.device.type != "cpu":  # there dead rows run too: not over the text of one that has ended
            state.cache.lengths.mul_(live)
        features = self._run_chain(state, state.tokens, state.features, torch.where(live, state.counts, 0))
        state.counts.zero_()
        state.waiting = 0
        above = features.gather(1, last[..., None].expand(-1, -1, features.shape[-1]))  # [B, 1, E]: the root's
        places = Levels(len(roots), self._expanded, roots.device)

        def expand(frontier: Frontier) -> Tensor:
            nonlocal above
            width = frontier.tokens.shape[1]
            above = above.gather(1, frontier.parents[..., None].expand(-1, -1, above.shape[-1]))  # [B, F, E]
            place = places.place(frontier)
            many = live.to(torch.int32) * width
            rows = pack_nodes(state.cache, place.depths, place.words, many, place.first, self._backend(state))
            above = self._run(state, rows, frontier.tokens, above)
            return fit_vocabulary(self.head.logits(above), noise.vocab_size)

        root_logits = fit_vocabulary(self.head.logits(above), noise.vocab_size)[:, 0]  # [B, V]
        policy = first_levels(self.policy, levels)
        return grow(policy, roots, root_logits, expand, noise).tree

    @torch.inference_mode()
    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """The accepted tokens and the new root wait with the target's features before them.

        Where there is no room (a tree that is not ours was accepted far down, or nothing was drafted for many steps),
        the first of what waits is run at once.
        """
        width = state.tokens.shape[1]
        most = min(verdict.path.shape[1], tree.most_depth + 1)
        path = verdict.path[:, :most]
        features = self.head.fuse(output.hidden_at(path, self.head.hidden_layers))  # [B, D, E]
        over = max(state.waiting + most - width, 0)
        wide = pad(state.tokens, (0, over)), pad(state.features, (0, 0, 0, over))  # [B, D + 1 + over, ...]
        behind = state.counts.long()[:, None] + torch.arange(most, device=path.device)  # [B, D]
        wide[0].scatter_(1, behind, verdict.emitted(tree)[:, :most])
        wide[1].scatter_(1, behind[..., None].expand_as(features), features)
        counts = state.counts + verdict.num_accepted
        early = (counts - width).clamp_min(0)  # [B]
        for low in range(0, over, width):
            piece = slice(low, min(low + width, over))
            self._run_chain(state, wide[0][:, piece], wide[1][:, piece], (early - low).clamp(0, width))
        kept = early.long()[:, None] + torch.arange(width, device=path.device)  # [B, D + 1]
        state.tokens.copy_(wide[0].gather(1, kept))
        state.features.copy_(wide[1].gather(1, kept[..., None].expand_as(state.features)))
        state.counts.copy_(counts - early)
        state.waiting = min(state.waiting + most, width)

    def _run_chain(self, state: State, tokens: Tensor, features: Tensor, counts: Tensor) -> Tensor:
        """Run the first `counts` `[B]` of the pairs `[B, W]` as they follow the texts, and keep them there."""
        state.cache.lengths.clamp_(max=state.longest)
        chain = TokenTree.chain(tokens)
        rows = pack_nodes(state.cache, chain.depths, chain.words, counts, 0, self._backend(state))
        found = self._run(state, rows, tokens, features)
        state.cache.append(torch.arange(len(tokens), device=tokens.device), counts)
        return found

    def _run(self, state: State, rows: Rows | None, tokens: Tensor, features: Tensor) -> Tensor:
        """Pairs of `[B, N]` tokens and `[B, N, E]` features; what comes out, zero where no row was."""
        if rows is None:
            return torch.zeros_like(features)
        return rows.spread(self._run_rows(state, rows, rows.pick(tokens), rows.pick(features)))

    def _run_rows(self, state: State, rows: Rows, tokens: Tensor, features: Tensor) -> Tensor:
        """Packed pairs: `[R]` tokens and `[R, E]` features to `[R, E]`."""
        view = CacheView(state.cache, rows.places)
        with plugged_in([self.head.decoder]):
            found: Tensor = self.head(
                tokens[None], features[None], rows.positions[None], past_key_values=view, specdec_rows=rows.visible
            )[0]
        return found

    def _backend(self, state: State) -> Backend:
        return choose_backend(self.backend, state.cache.device)
