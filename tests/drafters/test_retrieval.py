"""Retrieval: the datastore's file, its search against one that reads everything, and what is drafted."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import specdec
from specdec import loading
from specdec.drafters import datastore
from specdec.drafters.datastore import Datastore
from specdec.drafters.retrieval import Retrieval
from specdec.tree.token_tree import TokenTree

from ..fakes import write_datastore
from ..models import make_model, own_texts, ragged_batch

TEXTS = [[5, 6, 7, 8], [5, 6, 7, 9], [6, 7, 8, 8, 8], [1, 2, 3]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_datastore(tmp_path / "datastore.bin", TEXTS, 80)


# --- search


def naive(tokens: list[int], query: list[int], shortest: int) -> tuple[int, list[int]]:
    """Length of the longest suffix that occurs, and the places after its occurrences."""
    for n in range(len(query), shortest - 1, -1):
        part = query[len(query) - n :]
        places = [at + n for at in range(len(tokens)) if tokens[at : at + n] == part]
        if places:
            return n, places
    return 0, []


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
    st.integers(1, 3),
    st.sampled_from([300, 70_000]),
)
def test_as_a_naive_search(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], query: list[int], shortest: int, vocab_size: int
) -> None:
    """Two and four bytes a token, tokens above 255, whose bytes must sort as they do."""
    texts, query = ([[t * 97 for t in row] for row in texts], [t * 97 for t in query])
    made = Datastore(write_datastore(tmp_path_factory.mktemp("store") / "d", texts, vocab_size))
    tokens = [t for text in texts for t in (*text, 0)]
    match = made.find(query, shortest)
    length, places = naive(tokens, query, shortest)
    assert (match[0], match[2] - match[1]) == (length, len(places))
    following = [tokens[at : at + 4] for at in places]
    cut = [row[: row.index(0) + 1] if 0 in row else row for row in following]
    assert Counter(map(tuple, made.continuations(match, 4, 99))) == Counter(map(tuple, cut))


def test_samples_are_spread_over_what_follows(tmp_path: Path) -> None:
    texts = [[7, 1]] * 60 + [[7, 2]] * 30 + [[7, 3]] * 10
    made = Datastore(write_datastore(tmp_path / "d", texts, 80))
    match = made.find([7], 1)
    assert [n for _, n in sorted(Counter(c[0] for c in made.continuations(match, 1, 10)).items())] == [6, 3, 1]


def test_a_lookup_in_a_million_tokens_takes_no_search(tmp_path: Path) -> None:
    """Bytes that are looked at by one lookup: some hundreds of places, however many there are."""
    tokens = np.arange(1_000_000) % 50_000
    order = np.argsort(tokens, kind="stable")  # suffixes of a repeated ramp sort by their first token, the later first
    suffixes = order.reshape(50_000, 20)[:, ::-1].ravel()
    datastore.write(tmp_path / "d", tokens, suffixes, 60_000, 59_999, bytes(32))
    made = Datastore(tmp_path / "d")
    looked_at = 0
    original = made._beginnings

    def counting(length: int) -> Callable[[int], bytes]:
        begins = original(length)

        def counted(at: int) -> bytes:
            nonlocal looked_at
            looked_at += 1
            return begins(at)

        return counted

    made._beginnings = counting  # type: ignore[method-assign]
    match = made.find(list(range(100, 116)), 2)
    assert (match[0], match[2] - match[1]) == (16, 20)
    assert looked_at <= 7 * 21


# --- drafts


def drafted(drafter: Retrieval, tokens: list[int], vocab_size: int = 80) -> list[list[int]]:
    text = drafter.read([tokens[:-1]], 99)[0]
    drafter.append(text, tokens[-1:])
    return TokenTree.from_lists([drafter.draft(text, vocab_size)]).paths(0)


def test_continuations_become_a_tree(file: Path) -> None:
    assert drafted(Retrieval(file), [4, 5, 6, 7]) == [[7, 8, 0], [7, 9, 0]]
    assert sorted(drafted(Retrieval(file), [4, 6, 7])) == [[7, 8, 0], [7, 8, 8, 8, 0], [7, 9, 0]]
    assert drafted(Retrieval(file, max_nodes=2), [4, 6, 7]) == [[7, 8]]
    assert drafted(Retrieval(file, length=1), [1, 2]) == [[2, 3]]
    assert drafted(Retrieval(file, shortest=3), [4, 6, 7]) == [[7]]
    assert drafted(Retrieval(file), [50, 51]) == [[51]]
    assert drafted(Retrieval(file), [5, 6, 7], vocab_size=9) == [[7, 8, 0]]  # 9 is not the target's


def test_tokens_that_only_pad_the_target_are_read(file: Path) -> None:
    assert drafted(Retrieval(file), [5, 100_000, 6, 7])[0][0] == 7


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_text_is_the_models_own_and_drafts_pay(tmp_path: Path, acceptance: str) -> None:
    model = make_model(dtype=torch.float64)
    ids, mask, _ = ragged_batch((9, 4, 1))
    wanted = own_texts((9, 4, 1), 30)
    store = write_datastore(tmp_path / "d", wanted, 80)
    out = specdec.generate(
        model, ids, mask, drafter=Retrieval(store), acceptance=acceptance, max_new_tokens=30, eos_token_id=[]
    )
    assert out.sequences[:, ids.shape[1] :].tolist() == wanted
    assert out.stats.mean_accepted_length_pooled > 3


# --- files


def test_two_bytes_where_they_do(tmp_path: Path) -> None:
    small = write_datastore(tmp_path / "a", [[1, 2]], 1 << 16)
    large = write_datastore(tmp_path / "b", [[1, 2]], (1 << 16) + 1)
    assert large.stat().st_size - small.stat().st_size == 2 * 3


def test_a_build_that_is_stopped_leaves_what_was_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_datastore(file, [[1, 2, 3]], 80)
    assert file.read_bytes() == before
    assert Datastore(file).tokens == sum(len(t) + 1 for t in TEXTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-5], "its header says .*: it is cut off"),
        (lambda data: data + b"x", "its header says"),
        (lambda data: data[:20], "its header is cut off or changed"),
        (lambda data: b"", "is no datastore"),
        (lambda data: b"PK" + data[2:], "is no datastore: it begins with b'PK"),
        (lambda data: data[:16] + b"\xff" + data[17:], "its header is cut off or changed"),
        (lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], "its checksum is another one"),
        (lambda data: data[:80] + bytes([data[80] ^ 1]) + data[81:], "its checksum is another one"),
    ],
)
def test_damaged_files_are_refused(file: Path, damage, message: str) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message + ".*build it with `specdec train experiment=train_retrieval`"):
        Retrieval(file)


def test_another_version_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datastore, "VERSION", 2)
    with pytest.raises(ValueError, match="has version 1, expected 2"):
        Datastore(file)
    assert struct.unpack_from("<I", file.read_bytes(), 8) == (1,)


def test_missing_files_and_wrong_numbers_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' does not exist; build it with `specdec train"):
        Retrieval(tmp_path / "nowhere")
    for settings in ({"shortest": 0}, {"longest": 1}, {"length": 0}, {"samples": 0}, {"max_nodes": 1}):
        with pytest.raises(ValueError, match="retrieval needs 1 <= shortest <= longest"):
            Retrieval(file, **settings)


def test_another_tokenizers_datastore_is_refused_before_decoding(tmp_path: Path) -> None:
    own = loading.fingerprint(loading.load_tokenizer("tiny"))
    model, tokenizer = loading.load_model("tiny"), loading.load_tokenizer("tiny")
    fitting = write_datastore(tmp_path / "own", [[1, 2]], 4096, own)
    specdec.SpeculativeDecoder(model, tokenizer, drafter=Retrieval(fitting))
    other = write_datastore(tmp_path / "other", [[1, 2]], 4096, bytes(32))
    with pytest.raises(ValueError, match="made with another tokenizer"):
        specdec.SpeculativeDecoder(model, tokenizer, drafter=Retrieval(other))
    larger = write_datastore(tmp_path / "larger", [[1, 2]], 9000, own)
    with pytest.raises(ValueError, match="a vocabulary of 9000 tokens, the target of 4096"):
        specdec.SpeculativeDecoder(model, tokenizer, drafter=Retrieval(larger))


def test_long_random_texts(tmp_path: Path) -> None:
    """Every continuation of the right length, from places all over the corpus."""
    rng = random.Random(0)
    text = [rng.randrange(1, 6) for _ in range(3000)]
    made = Datastore(write_datastore(tmp_path / "d", [text], 80))
    for at in rng.sample(range(10, 2900), 20):
        match = made.find(text[at - 10 : at], 2)
        assert match[0] == 10
        assert text[at : at + 5] in made.continuations(match, 5, 1000)
