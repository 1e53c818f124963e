"""Which sequences and places a step trains on: a pure function of (seed, step), so that nothing has to be saved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.experiments.training.heads.sequences import Sequences


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences, and the roots at which the head is asked.

    Attributes:
        tokens: `[B, L]` int64, right padded with 0.
        anchors: `[B, A]` int64, places r of roots; r + K is within the sequence.
        written: `[B]` bool, the target wrote what follows the anchors.
    """

    tokens: Tensor
    anchors: Tensor
    written: Tensor


@dataclass(frozen=True, slots=True)
class Places:
    """Where a head of some depth can be asked: from the end of the prompt on, or where the target wrote nothing,
    everywhere.

    Attributes:
        sequences: those that have such a place.
        length: they are cut to so many tokens.
        first, count: `[S]`, the first place, and how many there are.
    """

    sequences: Sequences
    length: int
    first: np.ndarray
    count: np.ndarray

    @staticmethod
    def of(sequences: Sequences, depth: int, length: int) -> Places:
        """Look for them.

        Raises:
            ValueError: there is none at all.
        """
        whole = sequences.prompt_lengths == sequences.lengths  # [S]
        first = np.where(whole, 1, np.maximum(sequences.prompt_lengths, 1))
        count = np.minimum(sequences.lengths, length) - depth - first
        fit = count > 0
        if not fit.any():
            raise ValueError(
                f"no sequence has {depth + 1} tokens after its prompt within the first {length}, which drafting "
                f"{depth} takes; raise data.new_tokens or training.length"
            )
        return Places(sequences.only(fit), length, first[fit], count[fit])

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, rows: np.ndarray, anchors: np.ndarray) -> Batch:
        """`rows` `[B]`, `anchors` `[B, A]`."""
        tokens = self.sequences.batch(rows)[:, : self.length]
        written = self.sequences.prompt_lengths[rows] < self.sequences.lengths[rows]
        return Batch(tokens, torch.from_numpy(anchors), torch.from_numpy(written))

    def draw(self, step: int, seed: int, batch: int, anchors: int) -> tuple[np.ndarray, np.ndarray]:
        """The step's sequences, a permutation of all per pass, and anchors spread evenly over each.

        Returns:
            `[B]` and `[B, A]`.
        """
        pass_number, offset = divmod(step * batch, len(self) - len(self) % batch)
        rows = np.random.default_rng((seed, 0, pass_number)).permutation(len(self))[offset : offset + batch]
        jitter = np.random.default_rng((seed, 1, step)).random((batch, anchors))
        spread = (np.arange(anchors) + jitter) / anchors  # in [0, 1), ascending
        return rows, self.first[rows, None] + (spread * self.count[rows, None]).astype(np.int64)
