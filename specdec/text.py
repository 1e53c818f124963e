"""Token ids to text while they come."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class TextPieces:
    """Token ids to text, piece by piece: none ends inside a character, and the cost does not grow with the text.

    Tokens are decoded together with the few before them, because a tokenizer may write a token differently at the
    beginning of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._before: list[int] = []  # already given out, kept as context
        self._waiting: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` complete."""
        self._waiting += tokens
        piece = self._decode()
        if piece.endswith("\ufffd"):  # perhaps the beginning of a character
            return ""
        return self._take(piece)

    def flush(self) -> str:
        """What is left at the end."""
        return self._take(self._decode())

    def _take(self, piece: str) -> str:
        if piece:
            self._before, self._waiting = self._waiting, []
        return piece

    def _decode(self) -> str:
        before = self._tokenizer.decode(self._before, skip_special_tokens=True)
        return self._tokenizer.decode(self._before + self._waiting, skip_special_tokens=True)[len(before) :]
