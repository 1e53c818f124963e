"""Mean accepted length without decoding: the greedy loop's walk over text that the target wrote greedily.

At a root r the loop would accept as many drafted tokens as agree with the text, and go on at the token after them. So
one forward pass over whole sequences tells what the loop would measure with chains of the head's depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.core import TrainableHead
from specdec.experiments.training.heads.batches import Places
from specdec.experiments.training.heads.teacher import Hidden, Teacher

LOGITS_AT_ONCE = 1 << 24  # bounds memory
ROWS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Simulation:
    """What the walks counted.

    Attributes:
        steps: `[K + 1]`, steps by how many drafted tokens they accepted.
    """

    steps: np.ndarray

    @property
    def mean_accepted_length(self) -> float:
        """Tokens a step emits, the target's own included."""
        return float((self.steps * np.arange(1, len(self.steps) + 1)).sum() / self.steps.sum())


@torch.no_grad()
def simulate(head: TrainableHead, teacher: Teacher, places: Places, dtype: torch.dtype) -> Simulation:
    """Walk over all sequences. The text ends for a walk where a whole draft no longer fits.

    Args:
        places: of sequences that the target wrote greedily.
        dtype: of the head's forward pass: bfloat16 is autocast.
    """
    counts = torch.zeros(head.depth + 1, dtype=torch.int64)
    device = teacher.model.device
    for start in range(0, len(places), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(places)))
        count = int(places.count[rows].max())
        anchors = places.first[rows, None] + np.minimum(np.arange(count), places.count[rows, None] - 1)
        batch = places.batch(rows, anchors)
        accepted = _accepted(head, teacher, batch.tokens.to(device), batch.anchors.to(device), dtype)
        counts += walk(accepted.cpu(), torch.from_numpy(places.count[rows]), head.depth)
    return Simulation(counts.numpy())


def _accepted(head: TrainableHead, teacher: Teacher, tokens: Tensor, anchors: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, A]` int64: how many drafted tokens agree with the text at every anchor."""
    hidden = teacher.hidden(tokens)
    width = max(1, LOGITS_AT_ONCE // (len(tokens) * head.depth * teacher.model.config.get_text_config().vocab_size))
    found = []
    for part in anchors.split(width, 1):
        drafted = ask(head, tokens, hidden, part, dtype).argmax(-1)  # [B, A', K]
        found.append((drafted == following(tokens, part, head.depth)).long().cumprod(-1).sum(-1))
    return torch.cat(found, 1)


def ask(head: TrainableHead, tokens: Tensor, hidden: Hidden, anchors: Tensor, dtype: torch.dtype) -> Tensor:
    """`head.predict` in `dtype`: bfloat16 by autocast, else with hidden states cast to it."""
    if dtype == torch.bfloat16:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
            return head.predict(tokens, hidden, anchors)
    return head.predict(tokens, {layer: x.to(dtype) for layer, x in hidden.items()}, anchors)


def following(tokens: Tensor, anchors: Tensor, depth: int) -> Tensor:
    """`[B, A, K]` int64: the tokens after each root. `tokens` `[B, L]`, `anchors` `[B, A]`."""
    places = anchors[..., None] + 1 + torch.arange(depth, device=anchors.device)
    return tokens.gather(1, places.flatten(1)).view(places.shape)


def walk(accepted: Tensor, count: Tensor, depth: int) -> Tensor:
    """Steps by how many drafted tokens they accept: `[K + 1]` int64.

    Args:
        accepted: `[B, A]` int64, of the step whose root is at each place.
        count: `[B]` int64, places of each sequence; those behind them mean nothing.
    """
    steps = torch.zeros(depth + 1, dtype=torch.int64)
    place = torch.zeros_like(count)
    while (live := place < count).any():
        taken = accepted.gather(1, place.clamp_max(accepted.shape[1] - 1)[:, None])[:, 0]  # [B]
        steps += torch.bincount(taken[live], minlength=depth + 1)
        place = place + taken + 1
    return steps
