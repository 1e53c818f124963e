"""The n-gram lookup: every backend against a search that reads the whole text."""

import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.kernels.ngram_match import ngram_match

from .cases import DEVICE

TRITON = ["triton"] if importlib.util.find_spec("triton") else []
BACKENDS = ["naive", *TRITON]
Found = list[tuple[int, int]]  # (place, length), best first


def search(text: list[int], min_n: int, max_n: int, matches: int) -> Found:
    """For n from the longest to the shortest, places from the last to the first."""
    found: Found = []
    for n in range(min(max_n, len(text) - 1), min_n - 1, -1):
        for start in range(len(text) - 1, n - 1, -1):
            if text[start - n : start] == text[len(text) - n :] and start not in [place for place, _ in found]:
                found.append((start, n))
    return (found + [(-1, 0)] * matches)[:matches]


def batch_of(rows: list[list[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts `[B, width]` behind which more of the same follows, which must not be found, and lengths `[B]`."""
    texts = torch.zeros(len(rows), width, dtype=torch.int64)
    for b, row in enumerate(rows):
        texts[b] = torch.tensor((row * (width // max(len(row), 1) + 1))[:width] if row else [0] * width)
    return texts.to(DEVICE), torch.tensor([len(row) for row in rows], dtype=torch.int32, device=DEVICE)


def check(rows: list[list[int]], width: int, min_n: int, max_n: int, matches: int, backend: Any) -> None:
    starts, lengths = ngram_match(*batch_of(rows, width), min_n, max_n, matches, backend=backend)
    assert (starts.dtype, lengths.dtype) == (torch.int32, torch.int32)
    assert starts.shape == lengths.shape == (len(rows), matches)
    for b, row in enumerate(rows):
        found = list(zip(starts[b].tolist(), lengths[b].tolist(), strict=True))
        assert found == search(row, min_n, max_n, matches)


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=30), min_size=1, max_size=4),
    st.integers(0, 4),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 6),
)
@settings(max_examples=40)
def test_against_a_search(rows: list[list[int]], more: int, n: tuple[int, int], matches: int) -> None:
    width = max(map(len, rows)) + more
    for backend in BACKENDS:
        check(rows, width, min(n), max(n), matches, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_places(backend: Any) -> None:
    """Matches in several blocks, across their edges and at them; texts that end within one, and none at all."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 400, (size,), generator=generator).tolist() for size in (2500, 1024, 1025, 1026, 0, 1, 2)]
    for row, places in ((rows[0], (30, 1020, 1022, 2047, 2400)), (rows[1], (1, 1000)), (rows[2], (1018,))):
        for size, place in zip((2, 3, 1, 3, 2), places, strict=False):
            row[place : place + size] = row[-size:]
    rows[3][:] = [7] * len(rows[3])
    for matches in (1, 4):
        check(rows, 2501, 1, 3, matches, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_that_need_all_64_bits(backend: Any) -> None:
    low, high = 5, 5 + (1 << 32)
    check([[low, 1, high, 2, low], [high, 1, low, 2, high]], 5, 1, 2, 2, backend)
    check([[-1, 3, -1]], 3, 1, 1, 1, backend)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_rows_of_a_wider_buffer(backend: Any) -> None:
    """A view without a buffer's last column, as fixed buffers with a column for waste give it."""
    wide, lengths = batch_of([[1, 2, 1, 2, 1], [3, 3, 4, 3]], 6)
    starts, found = ngram_match(wide[:, :5], lengths, 1, 3, 2, backend=backend)
    assert starts.tolist() == [[3, 1], [2, 1]]
    assert found.tolist() == [[3, 1], [1, 1]]


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_nothing_to_look_in(backend: Any) -> None:
    for batch, width in ((2, 0), (0, 4), (2, 1)):
        texts = torch.zeros(batch, width, dtype=torch.int64, device=DEVICE)
        lengths = torch.full((batch,), width, dtype=torch.int32, device=DEVICE)
        starts, found = ngram_match(texts, lengths, 1, 3, 2, backend=backend)
        assert starts.tolist() == [[-1, -1]] * batch
        assert found.tolist() == [[0, 0]] * batch


def test_bad_arguments_are_named() -> None:
    texts, lengths = batch_of([[1, 2, 1]], 4)
    refused: list[tuple[tuple[Any, ...], str]] = [
        ((texts[0], lengths, 1, 3), r"texts must be \[B, L\]"),
        ((texts, lengths[:0], 1, 3), r"lengths \[B\]"),
        ((texts.int(), lengths, 1, 3), "texts must be int64"),
        ((texts, lengths.long(), 1, 3), "lengths int32"),
        ((texts[:, ::2], lengths, 1, 3), "contiguous in its last dimension"),
        ((texts, lengths, 0, 3), "1 <= min_n <= max_n"),
        ((texts, lengths, 3, 2), "1 <= min_n <= max_n"),
        ((texts, lengths, 1, 2, 0), "matches >= 1"),
        ((texts, lengths, 1, 2, 1, "cuda"), "backend must be auto, naive or triton"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            ngram_match(*arguments)
