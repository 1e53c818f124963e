"""Pages of KV on the host: who holds which, what is in them, and which are given away next. No tensors.

A page is free, or held by one text or several, or idle: nobody holds it, but what is in it may come again. A page that
is full of committed tokens is known by them and by all tokens before them (a chain of digests), so that another text
with the same beginning can hold it, too. A page that two texts hold is full, and nobody writes to it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

ROOT = b""  # key of the beginning of every text


@dataclass(frozen=True, slots=True)
class Match:
    """What pages hold of a text's beginning.

    Attributes:
        pages: full pages, in order of the text, which may be held.
        keys: theirs.
        partial: a full page whose first `copied` tokens are the next ones of the text: worth a copy; -1 for none.
    """

    pages: list[int]
    keys: list[bytes]
    partial: int = -1
    copied: int = 0


@dataclass(slots=True)
class _Known:
    """A page that is full: its key, that of the page before it, and its tokens."""

    key: bytes
    parent: bytes
    tokens: list[int] = field(repr=False)


class PagePool:
    """See the module.

    Args:
        pages: how many.
        size: tokens of a page.
        first: number of the first one.

    Attributes:
        changes: how often a page has changed hands, or become known.
    """

    def __init__(self, pages: int, size: int, first: int = 0):
        self.size, self.pages, self.first = size, pages, first
        self.changes = 0
        self._free = dict.fromkeys(range(first + pages - 1, first - 1, -1))  # the last one is given first
        self._idle: OrderedDict[int, None] = OrderedDict()  # the one that was let go first is evicted first
        self._holders: dict[int, int] = {}
        self._known: dict[int, _Known] = {}
        self._by_key: dict[bytes, int] = {}
        self._following: dict[tuple[bytes, int], dict[int, None]] = {}  # parent's key, first token -> pages

    @property
    def available(self) -> int:
        """Pages that `take` can give: free ones and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        """Pages that somebody holds."""
        return len(self._holders)

    def pages_for(self, tokens: int) -> int:
        """How many pages that many tokens need."""
        return -(-tokens // self.size)

    def take(self, wanted: int = -1) -> int:
        """A page for one holder, with nothing in it that is known: `wanted` if nobody holds that, else a free one, else
        the idle one that is evicted first.

        Raises:
            IndexError: all pages are held.
        """
        if wanted in self._idle:
            page = wanted
            del self._idle[page]
            self._forget(page)
        elif wanted in self._free:
            page = wanted
            del self._free[page]
        elif self._free:
            page, _ = self._free.popitem()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        else:
            raise IndexError(f"all {self.pages} pages are held")
        self._holders[page] = 1
        self.changes += 1
        return page

    def hold(self, page: int) -> None:
        """One more holder of a known page."""
        if page not in self._known:
            raise ValueError(f"page {page} is not full; only what is never written again can be shared")
        self._idle.pop(page, None)
        self._holders[page] = self._holders.get(page, 0) + 1
        self.changes += 1

    def drop(self, pages: Iterable[int]) -> None:
        """One holder less of every page: in the order of the text, whose end is evicted before its beginning.

        Raises:
            ValueError: nobody holds one of them.
        """
        for page in reversed(list(pages)):
            count = self._holders.get(page, 0) - 1
            if count < 0:
                raise ValueError(f"page {page} was dropped more often than it was taken")
            self.changes += 1
            if count:
                self._holders[page] = count
                continue
            del self._holders[page]
            if page in self._known:
                self._idle[page] = None
            else:
                self._free[page] = None

    def remember(self, parent: bytes, tokens: Sequence[int], page: int) -> bytes:
        """`page` is full of `tokens`, which follow the page `parent` (ROOT for none); returns its key. Where another
        page has the same, that one stays known."""
        key = chain(parent, tokens)
        if key not in self._by_key and page not in self._known:
            self.changes += 1
            self._known[page] = _Known(key, parent, list(tokens))
            self._by_key[key] = page
            self._following.setdefault((parent, tokens[0]), {})[page] = None
        return key

    def keys(self, tokens: Sequence[int]) -> list[bytes]:
        """Of the full pages of a text, in order."""
        found: list[bytes] = []
        for first in range(0, len(tokens) - self.size + 1, self.size):
            found.append(chain(found[-1] if found else ROOT, tokens[first : first + self.size]))
        return found

    def find(self, key: bytes) -> int | None:
        """The page that is known by `key`, if there is one."""
        return self._by_key.get(key)

    def match(self, tokens: Sequence[int]) -> Match:
        """The longest known beginning of a text. It changes nothing: `hold` the pages to keep them."""
        pages: list[int] = []
        keys = self.keys(tokens)
        for key in keys:
            if (page := self._by_key.get(key)) is None:
                break
            pages.append(page)
        del keys[len(pages) :]
        parent = keys[-1] if keys else ROOT
        rest = tokens[len(pages) * self.size :][: self.size]
        best, copied = -1, 0
        for page in self._following.get((parent, rest[0]), ()) if rest else ():
            shared = _common(self._known[page].tokens, rest)
            if shared > copied:
                best, copied = page, shared
        return Match(pages, keys, best, copied)

    def _forget(self, page: int) -> None:
        known = self._known.pop(page)
        del self._by_key[known.key]
        place = known.parent, known.tokens[0]
        del self._following[place][page]
        if not self._following[place]:
            del self._following[place]

    def check(self) -> None:
        """Every page is in one place, and what is known of it can be found.

        Raises:
            AssertionError: the books are wrong.
        """
        everywhere = [*self._free, *self._idle, *self._holders]
        assert len(everywhere) == len(set(everywhere)) == self.pages, "a page is lost, or is in two places"
        assert all(count > 0 for count in self._holders.values())
        assert all(page in self._known for page in self._idle)
        assert not any(page in self._known for page in self._free)
        assert {known.key: page for page, known in self._known.items()} == self._by_key
        assert {page for pages in self._following.values() for page in pages} == set(self._known)


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a page of `tokens` that follows the page `parent`: a digest, which no two texts share by chance."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
