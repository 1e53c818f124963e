"""What the target is asked to continue: pieces of texts, or questions. Some are held out for evaluation."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from specdec.experiments.conversation import encode
from specdec.experiments.data import load_questions
from specdec.experiments.training.corpus import Source, read_corpus
from specdec.experiments.training.heads.config import DataConfig

HELD_OUT_SHARE = 0.1  # of a text file, at its end, and of questions
CHARACTERS_PER_TOKEN = 12  # no tokenizer's are longer on average, so that a piece of text this long has tokens enough

Make = Callable[[int], list[int]]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompt i is the same in every run, however many are asked for.

    Attributes:
        train, held_out: the prompt of sequence i.
        window: a piece of a training text of prompt and continuation's length; None for questions.
        sources: packages that texts came from.
    """

    train: Make
    held_out: Make
    window: Make | None
    sources: list[Source]


def make_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_positions: int) -> Prompts:
    """Prompts as `config` says.

    Args:
        max_positions: of the target; 0 for no limit.

    Raises:
        ValueError: there is no text, nothing to hold out, or a question leaves no room for its answer.
    """
    if config.path is not None and config.path.endswith(".jsonl"):
        return _questions(config, tokenizer, max_positions)
    sources: list[Source] = []
    if config.path is not None:
        texts = [Path(file).read_text(encoding="utf-8") for file in sorted(glob.glob(config.path, recursive=True))]
        cuts = [int(len(text) * (1 - HELD_OUT_SHARE)) for text in texts]
        train = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
        held_out = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    else:
        documents, sources = read_corpus(config.packages)
        train = [d.text for d in documents if not d.held_out]
        held_out = [d.text for d in documents if d.held_out]
    train, held_out = ([t for t in texts if t.strip()] for texts in (train, held_out))
    for texts, what in ((train, "to train on"), (held_out, "to hold out")):
        if not texts:
            raise ValueError(f"there is no text {what} in {_where(config)}; name more packages or text files")
    short, long = config.prompt_tokens, config.prompt_tokens + config.new_tokens
    return Prompts(
        _pieces(train, tokenizer, short, (config.seed, 0)),
        _pieces(held_out, tokenizer, short, (config.seed, 1)),
        _pieces(train, tokenizer, long, (config.seed, 2)),
        sources,
    )


def _questions(config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_positions: int) -> Prompts:
    """The questions' first turns, in turn; every tenth is held out."""
    items = load_questions(config.path).items
    each = round(1 / HELD_OUT_SHARE)
    held_out = items[each - 1 :: each] or items[-1:]
    train = [item for item in items if item not in held_out]
    if not train:
        raise ValueError(f"{config.path} holds one question; expected at least two, to train on and to hold out")
    ids = {q.question_id: encode(tokenizer, q.turns, [], 0)[0] for q in items}
    longest = max(map(len, ids.values())) + config.new_tokens
    if max_positions and longest > max_positions:
        raise ValueError(
            f"the longest question of {config.path} and data.new_tokens make {longest} tokens, but the target has "
            f"{max_positions} positions; lower data.new_tokens, or take the question out"
        )
    chosen = [[ids[q.question_id] for q in part] for part in (train, held_out)]
    turns = len(config.temperatures)  # a question is asked once at every temperature before it is asked again
    return Prompts(lambda i: chosen[0][i // turns % len(train)], lambda i: chosen[1][i % len(held_out)], None, [])


def _pieces(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, seed: tuple[int, int]) -> Make:
    """Piece i: `length` tokens from the beginning of a random line on; fewer where the text ends before."""
    sizes = np.array([len(text) for text in texts])
    ends = sizes.cumsum()

    def piece(index: int) -> list[int]:
        place = int(np.random.default_rng((*seed, index)).integers(ends[-1]))
        number = int(np.searchsorted(ends, place, side="right"))
        text, offset = texts[number], place - int(ends[number] - sizes[number])
        begin = text.rfind("\n", 0, offset) + 1
        ids: list[int] = tokenizer(text[begin : begin + CHARACTERS_PER_TOKEN * length])["input_ids"]
        return ids[:length] or tokenizer(text)["input_ids"][:length]

    return piece


def _where(config: DataConfig) -> str:
    return f"data.path={config.path}" if config.path is not None else f"data.packages={list(config.packages)}"
