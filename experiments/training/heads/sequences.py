"""Token sequences of different lengths, as one flat array, and as safetensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sequences:
    """S sequences.

    Attributes:
        tokens: `[T]` int32, all of them in a row.
        lengths: `[S]` int32, tokens of each, the prompt included.
        prompt_lengths: `[S]` int32: what follows was written by the target. A whole sequence's length where it wrote
            nothing: a piece of a text as it stands.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    prompt_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @staticmethod
    def of(rows: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> Sequences:
        """From lists of ids."""
        flat = np.array([token for row in rows for token in row], dtype=np.int32)
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        return Sequences(flat, lengths, np.array(prompt_lengths, dtype=np.int32))

    @staticmethod
    def joined(parts: Sequence[Sequences]) -> Sequences:
        """One after the other."""
        names = ("tokens", "lengths", "prompt_lengths")
        return Sequences(*(np.concatenate([getattr(p, n) for p in parts] or [np.empty(0, np.int32)]) for n in names))

    def only(self, chosen: np.ndarray) -> Sequences:
        """The sequences where `chosen` `[S]` bool."""
        return Sequences(
            self.tokens[np.repeat(chosen, self.lengths)], self.lengths[chosen], self.prompt_lengths[chosen]
        )

    def row(self, number: int) -> list[int]:
        """One sequence's ids."""
        end = int(self.lengths[: number + 1].sum())
        return [int(token) for token in self.tokens[end - self.lengths[number] : end]]

    def written(self) -> np.ndarray:
        """The tokens that the target wrote, in a row."""
        starts = np.repeat(self.lengths.cumsum() - self.lengths, self.lengths)  # [T], where each one's sequence begins
        return self.tokens[np.arange(len(self.tokens)) - starts >= np.repeat(self.prompt_lengths, self.lengths)]

    def batch(self, rows: np.ndarray) -> Tensor:
        """`[B, L]` int64, right padded with 0. `rows` `[B]` are indices."""
        ends = self.lengths.cumsum()
        batch = np.zeros((len(rows), self.lengths[rows].max()), dtype=np.int64)
        for place, row in enumerate(rows):
            length = self.lengths[row]
            batch[place, :length] = self.tokens[ends[row] - length : ends[row]]
        return torch.from_numpy(batch)

    def save(self, file: Path) -> None:
        """Write, atomically."""
        temporary = file.with_name(file.name + ".tmp")
        save_file({"tokens": self.tokens, "lengths": self.lengths, "prompt_lengths": self.prompt_lengths}, temporary)
        os.replace(temporary, file)

    @staticmethod
    def load(file: Path) -> Sequences:
        """Read what `save` wrote."""
        return Sequences(**load_file(file))
