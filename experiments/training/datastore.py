"""Build the datastore of drafter=retrieval: tokens of a corpus and their suffix array."""

from __future__ import annotations

import glob
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from specdec import loading
from specdec.drafters.datastore import write
from specdec.experiments.data import load_questions
from specdec.experiments.training.corpus import Source, read_corpus

FILE = "datastore.bin"
BATCH = 64  # texts that are tokenised at once

Progress = Callable[[int, int], None]  # texts done, texts in all


@dataclass(frozen=True, slots=True)
class DatastoreConfig:
    """What goes in.

    Attributes:
        output: a folder.
        tokenizer: of the target: a zoo name, a folder or a hub id.
        packages: `stdlib` or names of installed distributions; held-out files (see corpus) stay out.
        files: text files, or patterns of such.
        path: instead of both, text files (a pattern), or questions in Spec-Bench's form (a .jsonl), whose turns are the
            texts.
        most_tokens: end there; None takes all. Texts come in an order of no meaning, so that a part is like the whole.
    """

    output: str
    tokenizer: str
    packages: Sequence[str] = ()
    files: Sequence[str] = ()
    path: str | None = None
    most_tokens: int | None = None

    @property
    def patterns(self) -> list[str]:
        """Of the files that are read."""
        return list(self.files) if self.path is None else [self.path]


@dataclass(frozen=True, slots=True)
class DatastoreResult:
    """What became of it."""

    file: Path
    sources: list[Source]
    documents: int
    tokens: int


def check(config: DatastoreConfig) -> None:
    """Raise what would go wrong later.

    Raises:
        ValueError: there are no texts, no such tokenizer, or nothing to sort suffixes with.
    """
    if config.most_tokens is not None and (type(config.most_tokens) is not int or config.most_tokens < 1):
        raise ValueError(f"training.most_tokens is {config.most_tokens!r}; expected a whole number from 1 on, or null")
    if not config.packages and not config.patterns:
        raise ValueError("training.packages and training.files are empty; name a package or a text file")
    for pattern in config.patterns:
        if not glob.glob(pattern, recursive=True):
            raise ValueError(f"training.files: {pattern!r} matches no file")
    loading.model_path(config.tokenizer)
    _sorter()


def build(config: DatastoreConfig, progress: Progress) -> DatastoreResult:
    """Read, tokenise, sort and write.

    Raises:
        ValueError: as `check`; or there is not one text.
    """
    sort = _sorter()
    tokenizer = loading.load_tokenizer(config.tokenizer)
    documents, sources = read_corpus(config.packages if config.path is None else ())
    texts = [document.text for document in documents if not document.held_out]
    texts += [text for file in _files(config) for text in _texts(file)]
    if not texts:
        raise ValueError("there is no text in training.packages and training.files; nothing to build")
    if config.most_tokens is not None:
        texts = random.Random(0).sample(texts, len(texts))
    separator = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    pieces = []
    count = 0
    for done, ids in enumerate(_encode(tokenizer, texts), 1):
        pieces.append(np.array([*ids, separator], dtype=np.uint32))
        count += len(pieces[-1])
        progress(done, len(texts))
        if config.most_tokens is not None and count >= config.most_tokens:
            break
    tokens = np.concatenate(pieces)[: config.most_tokens]  # [T]
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    vocab_size = len(tokenizer)
    narrow = tokens.astype(np.uint16) if vocab_size <= 1 << 16 else tokens
    write(output / FILE, tokens, sort(narrow), vocab_size, separator, loading.fingerprint(tokenizer))
    return DatastoreResult(output / FILE, sources, len(pieces), len(tokens))


def _files(config: DatastoreConfig) -> list[str]:
    return [file for pattern in config.patterns for file in sorted(glob.glob(pattern, recursive=True))]


def _texts(file: str) -> list[str]:
    if file.endswith(".jsonl"):
        return ["\n".join(question.turns) for question in load_questions(file).items]
    return [Path(file).read_text(encoding="utf-8")]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    for start in range(0, len(texts), BATCH):
        yield from tokenizer(texts[start : start + BATCH], add_special_tokens=False)["input_ids"]


def _sorter() -> Callable[[np.ndarray], np.ndarray]:
    """Suffix array of `[T]` integers.

    Raises:
        ValueError: pydivsufsort is not installed.
    """
    try:
        from pydivsufsort import divsufsort
    except ImportError:
        raise ValueError("sorting suffixes needs pydivsufsort: pip install pydivsufsort") from None
    found: Any = divsufsort
    return lambda tokens: found(tokens)
