"""A tokenised corpus in one file, with its suffix array: where has this text occurred, and how did it go on?

The file is mapped into memory, not read. Layout: a header (see HEADER), the tokens, big-endian so that their bytes sort
as they do, and the positions of all suffixes in sorted order, 4 bytes each, little-endian.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

MAGIC, VERSION = b"SPECDATA", 1
# magic, version, bytes a token, vocabulary size, separator, tokens, the tokenizer's hash, the body's CRC-32; then the
# CRC-32 of the header before it
HEADER = struct.Struct("<8sIIIIQ32sI")
SIZE = HEADER.size + 4
MOST_TOKENS = (1 << 32) - 1


def write(
    file: Path, tokens: np.ndarray, suffixes: np.ndarray, vocab_size: int, separator: int, tokenizer: bytes
) -> None:
    """Write a datastore under another name and rename it: one that was cut off is never taken for whole.

    Args:
        tokens: `[T]` integers, documents one after the other, each with `separator` at its end.
        suffixes: `[T]` integers, the suffix array of `tokens`.
        vocab_size: V; tokens take two bytes if it is at most 65,536.
        tokenizer: 32 bytes, see `loading.fingerprint`.

    Raises:
        ValueError: there are too many tokens.
    """
    if not 0 < len(tokens) <= MOST_TOKENS:
        raise ValueError(f"a datastore holds 1 to {MOST_TOKENS:,} tokens; got {len(tokens):,}")
    width = 2 if vocab_size <= 1 << 16 else 4
    parts = [tokens.astype(f">u{width}").data, suffixes.astype("<u4").data]
    parts = [part.cast("B") for part in parts]
    checksum = zlib.crc32(parts[1], zlib.crc32(parts[0]))
    header = HEADER.pack(MAGIC, VERSION, width, vocab_size, separator, len(tokens), tokenizer, checksum)
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("wb") as out:
        out.write(header + struct.pack("<I", zlib.crc32(header)))
        for part in parts:
            out.write(part)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)


class Datastore:
    """A datastore that has been looked over.

    Args:
        file: made by `write`.

    Attributes:
        tokens: how many.
        vocab_size: V of the tokenizer.
        tokenizer: its fingerprint.

    Raises:
        ValueError: it is missing, cut off, damaged, or no datastore of this version.
    """

    def __init__(self, file: str | Path):
        again = "build it with `specdec train experiment=train_retrieval`"
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"datastore {str(file)!r} does not exist; {again}")
        size = path.stat().st_size
        with path.open("rb") as opened:
            header = opened.read(SIZE)
            if header[: len(MAGIC)] != MAGIC:
                raise ValueError(f"{path} is no datastore: it begins with {header[:8]!r}; {again}")
            if len(header) < SIZE or zlib.crc32(header[: HEADER.size]) != struct.unpack("<I", header[HEADER.size :])[0]:
                raise ValueError(f"{path} is damaged: its header is cut off or changed; {again}")
            _, version, width, self.vocab_size, self._separator, self.tokens, self.tokenizer, checksum = HEADER.unpack(
                header[: HEADER.size]
            )
            if version != VERSION:
                raise ValueError(f"{path} has version {version}, expected {VERSION}; {again}")
            expected = SIZE + self.tokens * (width + 4)
            if size != expected:
                raise ValueError(f"{path} has {size:,} bytes, its header says {expected:,}: it is cut off; {again}")
            end = SIZE + self.tokens * width
            whole = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self._bytes = mmap.mmap(opened.fileno(), end, access=mmap.ACCESS_READ)  # slices end where the tokens do
        if zlib.crc32(memoryview(whole)[SIZE:]) != checksum:
            raise ValueError(f"{path} is damaged: its checksum is another one; {again}")
        self._width, self._code = width, "H" if width == 2 else "I"
        self._suffixes: Sequence[int] = memoryview(whole)[end:].cast("I")
        self._text = np.frombuffer(self._bytes, f">u{width}", offset=SIZE)  # [T]

    def find(self, text: Sequence[int], shortest: int) -> tuple[int, int, int]:
        """The longest suffix of `text`, of at least `shortest` tokens, that occurs: its length, and the range of the
        suffix array that begins with it. All zeros if there is none."""
        wanted = struct.pack(f">{len(text)}{self._code}", *text)
        found, low, high = (0, 0, 0), shortest, len(text)
        while low <= high:
            length = (low + high) // 2
            part = wanted[len(wanted) - length * self._width :]
            begins = self._beginnings(length)
            first = bisect_left(self._suffixes, part, key=begins)
            if first < self.tokens and begins(self._suffixes[first]) == part:
                found, low = (length, first, 0), length + 1
            else:
                high = length - 1
        length, first, _ = found
        if not length:
            return found
        part = wanted[len(wanted) - length * self._width :]
        last = bisect_right(self._suffixes, part, first, key=self._beginnings(length))
        return length, first, last

    def continuations(self, match: tuple[int, int, int], length: int, most: int) -> list[list[int]]:
        """What followed a match, at most `length` tokens and to the end of its document.

        Of more than `most` places every so many are taken: the range is sorted by what follows, so that frequent
        continuations are met as often as they are frequent.
        """
        matched, first, last = match
        count = min(last - first, most)
        every = (first + (2 * i + 1) * (last - first) // (2 * count) for i in range(count))
        starts = [self._suffixes[place] + matched for place in every]
        places = np.add.outer(np.array(starts, dtype=np.int64), np.arange(length))  # [count, length]
        rows = self._text[np.minimum(places, self.tokens - 1)].tolist()
        found = []
        for start, tokens in zip(starts, rows, strict=True):
            if start + length > self.tokens:
                tokens = tokens[: self.tokens - start]
            if self._separator in tokens:
                tokens = tokens[: tokens.index(self._separator) + 1]
            found.append(tokens)
        return found

    def _beginnings(self, length: int) -> Callable[[int], bytes]:
        """A function of a place: the bytes of `length` tokens from there on, or of those there are to the end."""
        whole, width, count = self._bytes, self._width, length * self._width
        return lambda at: whole[(start := SIZE + at * width) : start + count]
