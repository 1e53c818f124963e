"""Pairs of a target and a drafter, small enough to enumerate: ordinary ones and those at which rules go wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from .exact import Model, random_model


def one_hot(model: Model) -> Model:
    """Temperature 0: all probability on the most likely token."""

    def greedy(text: tuple[int, ...]) -> Tensor:
        probs = model(text)
        return torch.zeros_like(probs).index_fill_(0, probs.argmax(), 1.0)

    return greedy


def half_equal(target: Model, other: Model) -> Model:
    """The target's own distribution after texts of even length, with the first token's probability equal else."""

    def draft(text: tuple[int, ...]) -> Tensor:
        if len(text) % 2 == 0:
            return target(text)
        probs = target(text).clone()
        probs[1:] = other(text)[1:] * (1 - probs[0]) / other(text)[1:].sum()
        return probs

    return draft


def only(model: Model, odd: bool) -> Model:
    """Every second token is possible."""

    def kept(text: tuple[int, ...]) -> Tensor:
        probs = model(text) * (torch.arange(len(model(text))) % 2 == int(odd))
        return probs / probs.sum()

    return kept


def most_likely(model: Model, count: int) -> Model:
    """Top-k: the `count` most likely tokens of each distribution."""

    def kept(text: tuple[int, ...]) -> Tensor:
        probs = model(text)
        chosen = probs.topk(count).indices
        return torch.zeros_like(probs).index_copy(0, chosen, probs[chosen] / probs[chosen].sum())

    return kept


def eighths(vocab: int, shift: int) -> Model:
    """Probabilities that float64 holds exactly, so that sums and differences are exactly 0, 1 and equal: ties."""
    probs = torch.full((vocab,), 0.125, dtype=torch.float64)
    probs[shift % vocab] += 1 - float(probs.sum())
    return lambda text: probs.roll(len(text))


def pair(kind: str, vocab: int) -> tuple[Model, Model]:
    """Target and drafter."""
    target, draft = random_model(vocab, 1), random_model(vocab, 2)
    return {
        "random": (target, draft),
        "sharp": (random_model(vocab, 3, spread=6.0), random_model(vocab, 4, spread=6.0)),
        "equal": (target, target),
        "half equal": (target, half_equal(target, draft)),
        "draft has zeros": (target, random_model(vocab, 5, zeros=vocab - 2 if vocab > 2 else 1)),
        "target has zeros": (random_model(vocab, 6, zeros=vocab - 2 if vocab > 2 else 1), draft),
        "both have zeros": (random_model(vocab, 7, zeros=1), random_model(vocab, 8, zeros=1)),
        "nothing in common": (only(target, odd=False), only(draft, odd=True)),
        "other top-k": (most_likely(target, 2), most_likely(draft, max(2, vocab - 1))),
        "ties": (eighths(vocab, 0), eighths(vocab, 1)),
        "draft is one token": (target, one_hot(draft)),
        "greedy": (one_hot(target), one_hot(draft)),
        "greedy target": (one_hot(target), draft),
    }[kind]


KINDS = [
    "random",
    "sharp",
    "equal",
    "half equal",
    "draft has zeros",
    "target has zeros",
    "both have zeros",
    "nothing in common",
    "other top-k",
    "ties",
    "draft is one token",
    "greedy",
    "greedy target",
]
