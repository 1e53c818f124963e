"""`specdec bench skip`: which of a target's layers `early_exit` should leave out.

The target writes texts. A set of layers is as good as the share of their places, but for the last, at which the target
without them says what the whole target says next ("matchness"): one pass for all places of all texts, in which each
sees the whole target's KV of the text before it, as it does when it is the first token of a draft. Every other text is
held out: the best of many sets is so good partly by chance, and what it is worth is its share there.
Zhang et al., Draft & Verify, arXiv 2309.08168; Xia et al., SWIFT, arXiv 2410.06916.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from specdec import loading
from specdec.engine import Engine, serve
from specdec.experiments.bench.results import Json, origin
from specdec.experiments.bench.subsets import Subset, Told, search, spread
from specdec.experiments.data import load_questions
from specdec.partial import with_layers
from specdec.request import Request
from specdec.sampling import SamplingParams
from specdec.target import Target
from specdec.tree.token_tree import num_words, split_words

KEPT = 20  # best sets that go into the file


@dataclass(frozen=True)
class Settings:
    """Of `specdec bench skip`.

    Attributes:
        target: a model's name or folder.
        layers: how many to leave out; 0 for half of them.
        trials: most sets that are looked at.
        questions: a file of texts, in Spec-Bench's form; the shipped prompts without it.
        prompts, tokens: how many of them, and how many tokens the target adds to each.
        seed: of the search.
        output: the file.
        device: auto, or torch's name.
    """

    target: str = "tiny"
    layers: int = 0
    trials: int = 200
    questions: str = ""
    prompts: int = 20
    tokens: int = 32
    seed: int = 0
    output: str = "outputs/bench/skip.json"
    device: str = "auto"


class Matchness:
    """Scores sets of layers on texts.

    Args:
        model: the target.
        texts: prompts, at least a token each, and what the target wrote after them, at least two.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, texts: Sequence[tuple[list[int], list[int]]]):
        prompts, written = zip(*texts, strict=True)
        self.layers: int = model.config.get_text_config().num_hidden_layers
        self._most = most = max(map(len, written))  # T
        target = self._target = Target(model)
        target.open(len(texts), max(map(len, prompts)), 2 * most)
        target.prefill(range(len(texts)), prompts)
        device = target.device
        self._tokens = torch.tensor([row + [0] * (most - len(row)) for row in written], device=device)  # [B, T]
        self._counts = torch.tensor([len(row) for row in written], dtype=torch.int32, device=device)  # [B]
        self._depths = torch.arange(most, dtype=torch.int32, device=device).expand_as(self._tokens)  # [B, T]
        # the target's KV is in places 0 to T - 1, a draft's in T to 2 T - 1; rows see the target's and themselves
        self._whole, self._alone = (self._visible(first).expand(len(texts), -1, -1) for first in (0, most))
        output = target.extend(self._tokens, self._depths, self._whole, self._counts)
        self._says = output.logits.argmax(-1)  # [B, T]
        self._live = self._depths < self._counts[:, None] - 1  # [B, T]; the last one's next token is nobody's yet

    def _visible(self, first: int) -> Tensor:
        """`[1, T, W]` int64 for rows that are written from place `first` on."""
        words = num_words(2 * self._most)
        rows = [split_words(((1 << i) - 1) | (1 << (first + i)), words) for i in range(self._most)]
        return torch.tensor([rows], device=self._target.device)

    @property
    def places(self) -> int:
        """How many a share is of."""
        return int(self._live.sum())

    @torch.inference_mode()
    def __call__(self, skip: Subset) -> float:
        """The share for the target without the layers `skip`."""
        kept = [layer for layer in range(self.layers) if layer not in skip]
        draft = self._target.over(with_layers(self._target.model, kept))
        output = draft.extend(self._tokens, self._depths, self._alone, self._counts, first=self._most)
        says: Tensor = output.logits.argmax(-1)  # [B, T]
        return float((says == self._says)[self._live].double().mean())


def measure_skip(settings: Settings, told: Told) -> Json:
    """Everything, as it goes into the file.

    Args:
        told: is called after every set (see `search`).

    Raises:
        ValueError: the target or the questions cannot be used, or not so many layers can be left out.
    """
    model = loading.load_model(settings.target, settings.device)
    total = model.config.get_text_config().num_hidden_layers
    count = settings.layers or total // 2
    if not 0 < count < total:
        raise ValueError(f"layers={settings.layers}; {settings.target} has {total}, so expected 1 to {total - 1}")
    if settings.tokens < 2:
        raise ValueError(f"tokens={settings.tokens}; expected at least 2, a place and what comes next")
    texts = _texts(model, settings)
    searched, held_out = Matchness(model, texts[::2]), Matchness(model, texts[1::2])
    scores = search(searched, total, count, settings.trials, settings.seed, told)
    skip, evenly = next(iter(scores)), spread(total, count)
    return {
        "what": "share of places at which the target without the layers in `skip` says what it says with all of them",
        "target": settings.target,
        "layers": total,
        "skip": list(skip),
        "matchness": round(scores[skip], 4),
        "spread": round(scores[evenly], 4),
        "places": searched.places,
        "held_out": {
            "matchness": round(held_out(skip), 4),
            "spread": round(held_out(evenly), 4),
            "places": held_out.places,
        },
        "sets": len(scores),
        "best": [[round(score, 4), list(members)] for members, score in list(scores.items())[:KEPT]],
        "provenance": origin(settings),
    }


def _texts(model: PreTrainedModel, settings: Settings) -> list[tuple[list[int], list[int]]]:
    """Prompts and what the target writes after them, greedily."""
    tokenizer = loading.load_tokenizer(settings.target)
    engine = Engine(model, "none", None, "coupled")
    room = (engine.target.max_positions or 1 << 30) - settings.tokens
    if room < 1:
        raise ValueError(f"tokens={settings.tokens}; {settings.target} has {engine.target.max_positions} positions")
    questions = load_questions(settings.questions or None, limit=settings.prompts).items
    prompts = [tokenizer(question.turns[0])["input_ids"][-room:] for question in questions]
    written, _ = serve(engine, [Request(prompt, settings.tokens, SamplingParams()) for prompt in prompts])
    texts = [(prompt, text) for prompt, text in zip(prompts, written, strict=True) if len(text) > 1]
    if len(texts) < 2:
        raise ValueError(
            f"{settings.target} writes two tokens or more after {len(texts)} of {len(prompts)} prompts; expected at "
            "least 2, one to search on and one that is held out: give more prompts=, or other questions="
        )
    return texts


def show(measured: Json) -> Table:
    """For the terminal."""
    title = f"{len(measured['skip'])} of {measured['layers']} layers of {measured['target']} left out"
    table = Table("matchness", "skip", title=f"{title}: the best of {measured['sets']} sets")
    for score, members in measured["best"][:5]:
        table.add_row(f"{score:.3f}", str(members).replace(" ", ""))
    others = measured["held_out"]
    table.caption = (
        f"spread evenly: {measured['spread']:.3f}; {measured['places']} places. At {others['places']} places of texts "
        f"that were held out, the best: {others['matchness']:.3f}, spread evenly: {others['spread']:.3f}"
    )
    return table
