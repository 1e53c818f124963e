"""Tokens as a reader sees them: spaces and line ends are visible, nothing is invisible or empty."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedTokenizerBase

MARKS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
REPLACEMENT = "\ufffd"


def visible(text: str) -> str:
    """With marks for white space, and escapes for what does not print."""
    return "".join(MARKS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


class Words:
    """A token's own text. One that is only a part of a character is shown as the vocabulary spells it.

    Tokens are decoded behind another one, because a tokenizer may leave out the space at the beginning of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._before: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._start = tokenizer.decode(self._before)
        self.of = cache(self._read)

    def _read(self, token: int) -> str:
        text = self._tokenizer.decode([*self._before, token])
        text = text[len(self._start) :] if text.startswith(self._start) else self._tokenizer.decode([token])
        if not text or REPLACEMENT in text:
            text = str(self._tokenizer.convert_ids_to_tokens(token))
        return visible(text)
