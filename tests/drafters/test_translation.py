"""One text in two vocabularies: the draft model reads the target's text, and its drafts become the target's tokens."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest

from specdec.drafters.translation import CHARACTER, SLACK, BothTexts, Translator

from .tokenizers import KINDS, SOURCE, tokenizer

TEXTS = {
    "code": SOURCE[2000:3000],
    "words of other scripts": "naïve Ärger, 漢字かな交じり文 und 🙂🙃 emoji\n\tтабуляция  \n" * 5,
    "blanks": "a  \n\n\n   b    \t\tc\n" * 15 + " " * 40,
}
PAIRS = [pair for pair in product(KINDS, KINDS) if pair != ("bytes", "bytes")]


def plain(translator: Translator, tokens: list[int]) -> str:
    """The text of target tokens without the bytes of an unfinished character, which may spoil those before it."""
    texts = (translator.target.text(tokens[: len(tokens) - held]) for held in range(CHARACTER))
    return next(text for text in texts if not text.endswith("\ufffd"))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", TEXTS)
def test_the_draft_model_reads_the_text(name: str, pair: tuple[str, str]) -> None:
    """However it comes in pieces: the draft tokens' text is the target tokens' text, and the rest has been let go."""
    translator = Translator(tokenizer(pair[0]), tokenizer(pair[1]), window=12)
    ids, chance = translator.target.tokens(TEXTS[name]), random.Random(1)
    done = chance.randrange(1, 60)
    text = translator.begin(ids[:done])
    while done < len(ids):
        before, kept = list(text.tokens), text.read
        step = ids[done : done + chance.randrange(1, 6)]
        translator.follow(text, step)
        done += len(step)
        assert text.tokens[: text.read] == before[: text.read]
        assert text.read <= kept
        text.read = len(text.tokens)
        assert translator.draft.text(text.tokens).lstrip() == plain(translator, ids[:done]).lstrip()
        assert text.tail == ids[done - len(text.tail) : done]
        assert len(text.tail) <= 4 * translator.window + 60
        assert 0 <= text.pending < CHARACTER
        assert 0 <= text.skip <= SLACK
    assert len(text.tail) <= (4 if name == "blanks" else 2) * translator.window, "the last cut is not long ago"


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", TEXTS)
def test_drafts_become_the_targets_tokens(name: str, pair: tuple[str, str]) -> None:
    """A draft model that knows how the text goes on: what it writes is what the target's tokenizer makes of it."""
    translator = Translator(tokenizer(pair[0]), tokenizer(pair[1]), window=12)
    ids = translator.target.tokens(TEXTS[name])
    text = translator.begin(ids[:5])
    first = right = offered = 0
    for done in range(7, len(ids) - 20, 2):
        translator.follow(text, ids[done - 2 : done])
        coming = TEXTS[name].lstrip()[len(plain(translator, ids[:done]).lstrip()) :][:16]
        path = translator.draft.tokens("." + coming)[len(translator.draft.tokens(".")) :]
        if "." + coming != translator.draft.text(translator.draft.tokens(".") + path):
            continue  # the full stop became a part of it
        (found,) = translator.continuations(text, [path], 10**6)
        assert text.tail[-1] == ids[done - 1]
        agree = [a == b for a, b in zip(found, ids[done:], strict=False)]
        first += agree[:1] == [True]
        right += sum(agree[: agree.index(False)] if False in agree else agree)
        offered += 1
    assert offered > 20
    assert first / offered > 0.99
    assert right / offered > 4


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_any_tokens_at_all(pair: tuple[str, str]) -> None:
    """Texts of no sense, broken bytes and special tokens among them, are followed; and so are drafts of that kind."""
    translator = Translator(tokenizer(pair[0]), tokenizer(pair[1]), window=8)
    sizes = [len(tokenizer(kind)) for kind in pair]
    chance = random.Random(2)
    for _ in range(3):
        text = translator.begin([chance.randrange(sizes[0]) for _ in range(chance.randrange(1, 50))])
        for _ in range(60):
            translator.follow(text, [chance.randrange(sizes[0]) for _ in range(chance.randrange(1, 5))])
            paths = [[chance.randrange(sizes[1]) for _ in range(5)] for _ in range(3)]
            for found in translator.continuations(text, paths, sizes[0] - 50):
                assert all(0 <= token < sizes[0] - 50 for token in found)
            assert len(text.tail) <= 4 * 8 + 5
            assert 0 <= text.read <= len(text.tokens)
            assert text.base <= len(text.tokens)
            if chance.random() < 0.2:
                text.read = len(text.tokens)
                text.shorten(30, translator.draft.prefix)
                assert len(text.tokens) <= 30


def test_a_step_costs_the_same_however_long_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator(tokenizer("bytes"), tokenizer("more bytes"))
    ids = translator.target.tokens(SOURCE)
    text = translator.begin(ids[:10])
    seen: list[int] = []

    def counted(own: Any) -> Any:
        def call(what: Any) -> Any:
            seen.append(len(what))
            return own(what)

        return call

    for codec in (translator.target, translator.draft):
        for name in ("text", "tokens"):
            monkeypatch.setattr(codec, name, counted(getattr(codec, name)))
    for token in ids[10:1000]:
        translator.follow(text, [token])
        translator.continuations(text, [[70, 71]], 10**6)
    assert max(seen) <= 20 * 2 * translator.window


def test_nothing_to_say() -> None:
    """An empty text, an empty path, an end of text, half a character."""
    translator = Translator(tokenizer("bytes"), tokenizer("more bytes"))
    special = translator.target.special
    text = translator.begin(sorted(special))
    assert text.words == ""
    assert text.tokens == []
    end = min(translator.draft.special)
    path = translator.draft.tokens("ab cd")
    found = translator.continuations(text, [[], [end, *path], [*path, end, *path], path], 10**6)
    assert found[:2] == [[], []]
    assert found[2] == found[3] == translator.target.tokens("ab cd")
    smile = translator.draft.tokens("🙂")
    assert len(smile) == CHARACTER
    assert translator.continuations(text, [smile[:3], [*path, *smile[:3]]], 10**6) == [[], found[3]]


def test_the_rest_of_a_character() -> None:
    """The target is in the middle of one: a draft that has it whole goes on from there, another one is no use."""
    translator = Translator(tokenizer("bytes"), tokenizer("more bytes"))
    ids = translator.target.tokens("x = 🙂")
    text = translator.begin(ids[:-2])
    assert (text.words, text.pending) == ("x = ", 2)
    path = translator.draft.tokens("🙂!")
    other = translator.draft.tokens("!?")
    assert translator.continuations(text, [path, other], 10**6) == [[*ids[-2:], *translator.target.tokens("!")], []]
    translator.follow(text, ids[-2:])
    assert (text.words, text.pending) == ("x = 🙂", 0)


def test_a_text_begins_with_the_draft_models_bos() -> None:
    translator = Translator(tokenizer("bytes"), tokenizer("pieces"))
    text = translator.begin(translator.target.tokens("the text"))
    assert text.tokens[0] == tokenizer("pieces").bos_token_id
    text.tokens *= 20
    text.shorten(40, translator.draft.prefix)
    assert text.tokens[0] == tokenizer("pieces").bos_token_id
    assert len(text.tokens) == 21


def test_shorten() -> None:
    """What is let go, and where the tail begins then."""
    text = BothTexts(tokens=list(range(100)), base=90, skip=1, read=95)
    text.shorten(100, [7])
    assert (len(text.tokens), text.base, text.skip, text.read) == (100, 90, 1, 95)
    text.shorten(80, [7])
    assert text.tokens == [7, *range(60, 100)]
    assert text.tokens[text.base] == 90
    assert (text.skip, text.read) == (1, 0)
    text.shorten(10, [7])
    assert text.tokens == [7, *range(95, 100)]
    assert (text.base, text.skip) == (1, 1 + 5)
