"""One text in the tokens of two tokenizers: what a draft model reads of the target's, and its drafts as the target's.

Nothing but text lies between the two. Only the end of a text is tokenized again when it goes on, so a step costs the
same however long the text. What this gets wrong costs accepted tokens, never the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from specdec import loading

SLACK = 8  # tokens that may be others because the text before them was cut off
CHARACTER = 4  # most tokens, a byte each, of one character
LEADS = ("\n", "a", ".")  # texts that few tokens span together with words after them
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token for one byte, where tokens are pieces of text
UNFINISHED = "\ufffd"  # what tokenizers write for bytes that are no character, or not yet
_WORDS: dict[tuple[bytes, frozenset[int], int], dict[str, int]] = {}  # of every tokenizer and size asked for


class Codec:
    """A tokenizer without its extras: special tokens are left out of texts, and none is added."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        begun = tokenizer.encode("a")
        self.prefix = begun[:1] if begun and begun[0] == tokenizer.bos_token_id else []  # what a text begins with

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens to text."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def whole(self, tokens: list[int]) -> list[int]:
        """Without the rest of a character at the beginning, which may spoil the text of those after it."""
        starts = range(min(CHARACTER, len(tokens)))
        return next((tokens[i:] for i in starts if not self.text(tokens[i:]).startswith(UNFINISHED)), tokens)

    def words(self, size: int) -> Mapping[str, int]:
        """The tokens below `size` that are text by themselves, by that text, as it is in the midst of others.

        Of several for one text, as where characters have tokens beside those of their bytes, it is the first that
        stands for no byte. A vocabulary is decoded once.
        """
        key = (loading.fingerprint(self._tokenizer), self.special, size)
        if key not in _WORDS:
            _WORDS[key] = self._decode_words(size)
        return _WORDS[key]

    def _decode_words(self, size: int) -> dict[str, int]:
        lead = self.tokens("a")
        before = self.text(lead)
        count = min(size, len(self._tokenizer))
        wholes = self._tokenizer.batch_decode(
            [[*lead, token] for token in range(count)], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        names = self._tokenizer.convert_ids_to_tokens(list(range(count)))
        ranked = sorted(range(count), key=lambda token: (BYTE.fullmatch(str(names[token])) is not None, token))
        found: dict[str, int] = {}
        for token in ranked:
            word = wholes[token].removeprefix(before)
            if word and token not in self.special and UNFINISHED not in word:
                found.setdefault(word, token)
        return found

    def tokens(self, text: str) -> list[int]:
        """Text to tokens."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return found


@dataclass(slots=True)
class BothTexts:
    """A request's text in both vocabularies.

    Attributes:
        tail: the target's tokens at its end.
        words: the text of these, without an unfinished character.
        pending: how many of them, the last ones, are that character's.
        tokens: the draft model's tokens of the whole text, or of its end.
        base: those from here on are of `words`.
        skip: `words` alone has so many tokens before them, which stand for other ones.
        read: how many of `tokens`, from the first on, the draft model holds. Its owner sets it, a change lowers it.
    """

    tail: list[int] = field(default_factory=list)
    words: str = ""
    pending: int = 0
    tokens: list[int] = field(default_factory=list)
    base: int = 0
    skip: int = 0
    read: int = 0

    def shorten(self, room: int, prefix: Sequence[int]) -> None:
        """Keep `prefix` and the last half of `room` tokens, to be read again, if there are more than fit."""
        if len(self.tokens) <= room:
            return
        dropped = len(self.tokens) - room // 2
        self.tokens, self.read = [*prefix, *self.tokens[dropped:]], 0
        self.skip += max(dropped - self.base, 0)
        self.base = max(self.base - dropped, 0) + len(prefix)


class Translator:
    """Between the target's tokenizer and the draft model's.

    Args:
        target, draft: the tokenizers.
        window: target tokens at a text's end, at least, that are tokenized again when it goes on.
    """

    def __init__(self, target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, window: int = 24):
        self.target, self.draft, self.window = Codec(target), Codec(draft), window

    def begin(self, prompt: Sequence[int]) -> BothTexts:
        """A text, in target tokens."""
        prefix = self.draft.prefix
        text = BothTexts(tokens=list(prefix), base=len(prefix))
        self.follow(text, prompt)
        return text

    def follow(self, text: BothTexts, tokens: Iterable[int]) -> None:
        """The text goes on by target tokens."""
        text.tail += tokens
        text.words, text.pending = self._finished(text.tail)
        fresh = self.draft.tokens(text.words)[text.skip :]
        same = _shared(text.tokens[text.base :], fresh)
        text.tokens[text.base + same :] = fresh[same:]
        text.read = min(text.read, text.base + same)
        if len(text.tail) > 2 * self.window:
            self._cut(text)

    def _cut(self, text: BothTexts) -> None:
        """Let go of the beginning of the tail, if what is left has the same tokens without it, but for the first few.

        It is tried again at the next step, and after many tries the draft model begins anew with what is left.
        """
        tail = self.target.whole(text.tail[-self.window :])
        words = self._finished(tail)[0]
        alone = self.draft.tokens(words)
        shared = _shared(alone[::-1], text.tokens[: -len(alone) - 1 : -1])
        if len(alone) - shared > min(SLACK, len(alone) // 2):
            if len(text.tail) < 4 * self.window:
                return
            text.tokens, text.read, shared = [*self.draft.prefix, *alone], 0, len(alone)
        text.tail, text.words = tail, words
        text.skip, text.base = len(alone) - shared, len(text.tokens) - shared

    def _finished(self, tail: Sequence[int]) -> tuple[str, int]:
        """The text of `tail` without an unfinished character, and how many tokens are that one's."""
        words = whole = self.target.text(tail)
        for pending in range(1, CHARACTER + 1):
            if not words.endswith(UNFINISHED):
                return words, pending - 1
            words = self.target.text(tail[: max(len(tail) - pending, 0)])
        return whole, 0  # bytes that will never be one

    def continuations(self, text: BothTexts, paths: Sequence[Sequence[int]], vocab_size: int) -> list[list[int]]:
        """What `paths` of draft tokens after the text are as target tokens below `vocab_size`, each perhaps none."""
        known = self.target.tokens(text.words)
        pending = text.tail[len(text.tail) - text.pending :]
        found = []
        for path in paths:
            words = self._drafted(text, path)
            tokens = self._after(text.words, known, words) if words else []
            if tokens[: len(pending)] != pending:
                tokens = []
            tokens = tokens[len(pending) :]
            beyond = next((i for i, token in enumerate(tokens) if token >= vocab_size), len(tokens))
            found.append(tokens[:beyond])
        return found

    def _drafted(self, text: BothTexts, path: Sequence[int]) -> str:
        """The text of a path: up to a special token or an unfinished character."""
        end = next((i for i, token in enumerate(path) if token in self.draft.special), len(path))
        context = self.draft.whole(text.tokens[-SLACK:])
        before, whole = self.draft.text(context), self.draft.text([*context, *path[:end]])
        return whole[len(before) :].rstrip(UNFINISHED)

    def _after(self, before: str, known: list[int], words: str) -> list[int]:
        """Target tokens of `words` after the text `before`, whose tokens are `known`."""
        whole = self.target.tokens(before + words)
        if whole[: len(known)] == known:
            return whole[len(known) :]
        for lead in LEADS:  # a token would span both: take the words by themselves, after what is none of them
            begun, whole = self.target.tokens(lead), self.target.tokens(lead + words)
            if whole[: len(begun)] == begun:
                return whole[len(begun) :]
        return []


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
