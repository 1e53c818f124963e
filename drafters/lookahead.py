"""Lookahead decoding: the target itself guesses further down the text, in rows that ride in its verify passes.

Fu et al., arXiv 2402.02057. A window of W columns and N - 1 levels holds guesses at the tokens to come: column j of
level i stands i + j places behind the root, which is column 0 of level 0. Level 0 is a chain; below each of its tokens
hangs what became of it in the steps before (a Jacobi iteration's trajectory). The target's most likely tokens after the
last level complete W n-grams a step, which go to a pool, and are the last level of the next window. The draft is what
the pool has under the root's token.

No row of the window can be accepted, so any acceptance rule goes with it, and so does sampling: the pool is a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core import DraftNeeds, TargetOutput, Verdict
from specdec.sampling import DraftNoise
from specdec.tree.merge import merge_continuations
from specdec.tree.riders import Riders
from specdec.tree.token_tree import TokenTree
from specdec.tree.union import token_keys

RECENT = 256  # tokens of the text that new columns are begun with


@dataclass(slots=True)
class State:
    """What is known of every slot's text, on the target's device.

    Attributes:
        window: `[B, N - 1, W]` int64, by level and column; entry (0, 0) is the root.
        pool: `[B, P, N]` int64, n-grams in a ring; one that begins with -1 is none.
        keys: `[B, P]` int64, equal for equal n-grams.
        added: `[B]` int64, n-grams put into the pool so far: where the next one goes, modulo P.
        recent: `[B, RECENT + 1]` int64, the last tokens of the text in a ring, all of a short one again and again; the
            last entry takes what belongs nowhere.
        length: `[B]` int64, tokens put into `recent` so far.
        parents: `[R]` int64, see Riders.
    """

    window: Tensor
    pool: Tensor
    keys: Tensor
    added: Tensor
    recent: Tensor
    length: Tensor
    parents: Tensor


class Lookahead:
    """See the module. A verify pass has up to `(window + guesses) * (ngram - 1)` rows.

    Args:
        window: columns, W: n-grams a step.
        ngram: N; a draft is N - 1 tokens deep.
        guesses: most n-grams drafted at a step, the newest first; common beginnings are shared.
        pool: n-grams kept for a request, the prompt's own included; 8 bytes times `ngram` each.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, window: int = 15, ngram: int = 5, guesses: int = 15, pool: int = 4096):
        if window < 1 or ngram < 3 or guesses < 1 or pool < max(guesses, window):
            raise ValueError(
                "lookahead needs window >= 1, ngram >= 3, guesses >= 1 and a pool of at least window and guesses; "
                f"got {window}, {ngram}, {guesses} and {pool}"
            )
        self.window, self.ngram, self.guesses, self.pool = window, ngram, guesses, pool
        depth = ngram - 1
        self.needs = DraftNeeds(max_nodes=1 + guesses * depth, on_device=True, riders=window * depth - 1)

    def open(self, capacity: int, max_length: int, device: torch.device) -> State:
        """Empty pools."""

        def full(*shape: int, value: int = 0) -> Tensor:
            return torch.full(shape, value, dtype=torch.int64, device=device)

        return State(
            full(capacity, self.ngram - 1, self.window),
            full(capacity, self.pool, self.ngram, value=-1),
            full(capacity, self.pool),
            full(capacity),
            full(capacity, RECENT + 1),
            full(capacity),
            torch.tensor(window_parents(self.window, self.ngram - 1), dtype=torch.int64, device=device),
        )

    def start(self, state: State, slots: list[int], prompts: list[list[int]], prefill: TargetOutput) -> None:
        """The pool gets the prompt's n-grams, the window pieces of the prompt."""
        device, size = state.pool.device, self.ngram
        for slot, prompt in zip(slots, prompts, strict=True):
            latest = dict.fromkeys(tuple(prompt[end - size : end]) for end in range(len(prompt), size - 1, -1))
            grams = list(latest)[: self.pool][::-1]  # each once, the last ones of the text last
            state.pool[slot] = -1
            if grams:
                own = torch.tensor(grams, device=device)  # [n, N]
                state.pool[slot, : len(grams)] = own
                state.keys[slot, : len(grams)] = gram_keys(own)
            state.added[slot] = len(grams)
            text = prompt[-RECENT:]
            state.recent[slot, :RECENT] = torch.tensor(((text or [0]) * RECENT)[:RECENT], device=device)
            state.length[slot] = len(text)
        rows = torch.tensor(slots, device=device)
        state.window[rows] = self._begin(state)[rows]

    def propose(self, state: State, roots: Tensor, noise: DraftNoise) -> TokenTree:
        """The newest n-grams that begin with the root, and the window beside them."""
        state.window[:, 0, 0] = roots.clamp_min(0)
        places = torch.arange(self.pool, device=roots.device)
        newness = (places - state.added[:, None]) % self.pool + 1  # [B, P], the newest has P
        fitting = state.pool[:, :, 0] == roots[:, None]  # [B, P]
        rank, chosen = torch.where(fitting, newness, 0).topk(self.guesses)  # [B, G]
        grams = state.pool.gather(1, chosen[..., None].expand(-1, -1, self.ngram))  # [B, G, N]
        lengths = (rank > 0) * (self.ngram - 1)
        tree = merge_continuations(roots, grams[:, :, 1:].clamp_min(0), lengths, self.needs.max_nodes)
        riders = Riders(state.window.flatten(1)[:, 1:].clone(), state.parents)
        return TokenTree(tree.tokens, tree.parents, tree.sizes, riders=riders)

    def observe(self, state: State, tree: TokenTree, verdict: Verdict, output: TargetOutput) -> None:
        """New n-grams go to the pool; the window moves on by a level, and by the tokens of this step."""
        assert output.riders is not None
        new = output.riders[:, -self.window :].argmax(-1)  # [B, W]
        levels = torch.cat([state.window, new[:, None]], 1)  # [B, N, W]
        self._add(state, levels.transpose(1, 2))
        self._read(state, verdict.emitted(tree), verdict.num_accepted.long())
        # An entry one level up stands where the next column of its own level did: one token further on, it stays.
        column = torch.arange(self.window, device=new.device) + (verdict.num_accepted.long() - 1).clamp_min(0)[:, None]
        moved = levels[:, 1:].gather(2, column.clamp_max(self.window - 1)[:, None].expand(-1, self.ngram - 1, -1))
        state.window.copy_(torch.where(column[:, None] < self.window, moved, self._begin(state)))

    def _add(self, state: State, grams: Tensor) -> None:
        """`grams` `[B, W, N]` are the newest, those nearer to the root before others; what the pool has moves up."""
        keys = gram_keys(grams)  # [B, W]
        same = keys[:, :, None] == keys[:, None]  # [B, W, W]
        repeated = same.tril(-1).any(-1)  # [B, W], there is one nearer to the root
        known = (state.keys[:, :, None] == keys[:, None]).any(-1)  # [B, P]
        state.pool[:, :, 0].masked_fill_(known, -1)
        places = (state.added[:, None] + torch.arange(self.window - 1, -1, -1, device=keys.device)) % self.pool
        first = torch.where(repeated, -1, grams[:, :, 0])
        grams = torch.cat([first[..., None], grams[:, :, 1:]], -1)
        state.pool.scatter_(1, places[..., None].expand_as(grams), grams)
        state.keys.scatter_(1, places, keys)
        state.added += self.window

    def _read(self, state: State, emitted: Tensor, count: Tensor) -> None:
        """The first `count` `[B]` of `emitted` `[B, D]` are text now."""
        step = torch.arange(emitted.shape[1], device=emitted.device)
        place = torch.where(step < count[:, None], (state.length[:, None] + step) % RECENT, RECENT)  # [B, D]
        state.recent.scatter_(1, place, emitted)
        state.length += count

    def _begin(self, state: State) -> Tensor:
        """A window `[B, N - 1, W]` whose columns are pieces of the text, begun where chance says: the same chance for
        the same text, whoever else is there."""
        columns = torch.arange(self.window, device=state.length.device)
        lengths = state.length[:, None].expand(-1, self.window)
        start = (token_keys(lengths, columns.expand_as(lengths)) >> 8) % RECENT  # [B, W]
        level = torch.arange(self.ngram - 1, device=start.device)
        place = (start[:, None] + level[:, None]) % RECENT  # [B, N - 1, W]
        return state.recent.gather(1, place.flatten(1)).view_as(place)


def gram_keys(grams: Tensor) -> Tensor:
    """`[..., N]` -> `[...]` int64: equal for equal n-grams, and else different but by a chance of 2^-64."""
    return token_keys(grams, torch.arange(grams.shape[-1], device=grams.device).expand_as(grams)).sum(-1)


def window_parents(window: int, levels: int) -> list[int]:
    """The rider above each entry of a window, level by level, without the root, which is entry (0, 0); -1 for it."""
    chain = [column - 2 for column in range(1, window)]
    below = [entry - window - 1 for entry in range(window, window * levels)]
    return chain + below
