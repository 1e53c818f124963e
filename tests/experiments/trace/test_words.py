"""Tokens as text: nothing is invisible, and a part of a character is shown as one."""

from __future__ import annotations

import pytest

from specdec.experiments.trace.words import Words, visible

from ...models import byte_tokenizer


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("\n\t x\r", "↵⇥·x␍"),
        ("a\x00b\x1b", "a\\x00b\\x1b"),
        ("\u202eabc\u200b\u2028", "\\u202eabc\\u200b\\u2028"),  # would turn the line around, or be nothing
        ("</script>", "</script>"),
        ("日本é", "日本é"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_tokens_have_their_own_text() -> None:
    tokenizer = byte_tokenizer()
    words = Words(tokenizer)
    pieces = [words.of(token) for token in tokenizer(" the cat\n")["input_ids"]]
    assert "".join(pieces) == "·the·cat↵"
    assert words.of(tokenizer.eos_token_id) == "<eos>"
    halves = [words.of(token) for token in tokenizer("é")["input_ids"]]
    assert halves == ["Ã", "©"]  # the two bytes as the vocabulary spells them
    assert all(words.of(token) for token in range(len(tokenizer)))
