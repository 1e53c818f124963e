"""Who is served next, what is read of whose prompt, and whose pages are taken away. Bookkeeping alone: no tensors.

A job waits, is read in chunks, runs, and ends. It is admitted in the order of its arrival, when there are a slot and
pages for its tokens. What it may write at the next step has pages before the step. Where there are none left, the job
that was admitted last is preempted: it lets go of its pages, goes to the front of the queue, and is read again with the
text that it has. The first one admitted is never preempted for another's sake, so something always ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from specdec.pages import ROOT, PagePool

LEAST_ROWS = 16  # of chunks in a step, however many rows the trees have


@dataclass(slots=True, eq=False)
class Job:
    """A text in the making.

    Attributes:
        ids: prompt and text so far; whoever made the job appends to it.
        most: tokens that it can have at most.
        slot: where it is; -1 for nowhere.
        pages: that it holds, in order of the text.
        keys: of the first of these, which are full and known.
        expected: of all pages that reading will fill, all but its last token, where texts share pages.
        length: committed tokens, as far as the host knows.
        goal: tokens to read before it runs: all but the last, which is the root of its first tree.
        reached: tokens that it had committed before it was sent back.
        shared: tokens that it took over from others' pages, beyond those that it has had before.
        preemptions: how often it was sent back.
        copy: (from page, to page, tokens), to be done before anything is written.
    """

    ids: list[int]
    most: int
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    expected: list[bytes] = field(default_factory=list)
    length: int = 0
    goal: int = 0
    reached: int = 0
    shared: int = 0
    preemptions: int = 0
    copy: tuple[int, int, int] | None = None

    @property
    def reading(self) -> bool:
        """Whether it has not been read to its goal."""
        return self.length < self.goal

    def found(self, count: int) -> None:
        """The next `count` tokens are in its pages, and need not be read."""
        self.shared += max(self.length + count - max(self.length, self.reached), 0)
        self.length += count


AnyJob = TypeVar("AnyJob", bound=Job)


class Scheduler(Generic[AnyJob]):
    """See the module.

    Args:
        pool: of pages.
        slots: how many.
        room: places behind a text that a step may write to.
        late: places more that it may write to before the host knows how far it has come.
        rows: of one forward pass, at most, drafts not counted; the roots of trees always run.
        sharing: whether texts share pages with the same beginning.
        width: pages of a slot that are to lie side by side where that can be, for readers that gain by it; 0 where none
            does, and what is known of pages is kept for as long as it can be.
    """

    def __init__(
        self,
        pool: PagePool,
        slots: int,
        room: int,
        *,
        rows: int,
        late: int = 0,
        sharing: bool = True,
        width: int = 0,
    ):
        self.pool, self.room, self.late, self.width = pool, room, late, width
        self.rows, self.sharing = rows, sharing
        self.waiting: deque[AnyJob] = deque()
        self.running: list[AnyJob] = []  # in the order in which they were admitted
        self._slots = deque(range(slots))  # the one that was left first is entered first: its pages stay known longest
        self._refused: tuple[AnyJob, int] | None = None  # who was not admitted, at which of the pool's changes

    @property
    def free_slots(self) -> int:
        """Slots without a job."""
        return len(self._slots)

    def places(self, length: int) -> int:
        """Places that a text of so many committed tokens needs at a step."""
        return length + self.late + self.room

    def fits(self, job: AnyJob) -> bool:
        """Whether it could be served to its end by itself."""
        return self._most_pages(job) <= self.pool.pages

    def _most_pages(self, job: AnyJob) -> int:
        """That it can come to hold; the last token is never committed."""
        return self.pool.pages_for(self.places(job.most - 1))

    def admit(self) -> AnyJob | None:
        """The first that waits enters a slot, if there are one and pages enough; beside others, with one to spare for
        each of them that will want more."""
        if not self.waiting or not self._slots or self._refused == (self.waiting[0], self.pool.changes):
            return None
        job = self.waiting[0]
        job.goal = len(job.ids) - 1
        match = self.pool.match(job.ids[: job.goal - 1]) if self.sharing and job.goal > 1 else None  # one is read
        pages = match.pages if match else []
        need = self.pool.pages_for(self.places(job.goal)) - len(pages)
        for page in pages:
            self.pool.hold(page)
        growing = sum(len(other.pages) < self._most_pages(other) for other in self.running)
        if need + growing > self.pool.available:
            self.pool.drop(pages)
            self._refused = job, self.pool.changes
            return None
        job.pages, job.keys = list(pages), list(match.keys) if match else []
        job.expected = self.pool.keys(job.ids[: job.goal - 1]) if match else []
        partial, copied = (match.partial, match.copied) if match else (-1, 0)
        if copied:
            self.pool.hold(partial)
            if need > self.pool.available:  # it is not worth another page
                self.pool.drop([partial])
                copied = 0
        job.slot = self._slots.popleft()
        for _ in range(need):
            self._grow(job)
        job.copy = None
        if copied:  # what is in the page stays until something new is written, and the copy comes first
            self.pool.drop([partial])
            job.copy = partial, job.pages[len(pages)], copied
        job.found(len(pages) * self.pool.size + copied)
        self.waiting.popleft()
        self.running.append(job)
        return job

    def reserve(self) -> tuple[list[tuple[AnyJob, int]], list[tuple[AnyJob, int]]]:
        """Pages for all that the next step may write, of the first admitted first.

        Returns:
            Jobs with new pages, and how many they had before; jobs that have been preempted, and their slots.
        """
        grown: list[tuple[AnyJob, int]] = []
        preempted: list[tuple[AnyJob, int]] = []
        for job in list(self.running):
            if job.slot < 0:
                continue
            had = len(job.pages)
            need = self.pool.pages_for(self.places(max(job.length, job.goal)))
            while job.slot >= 0 and len(job.pages) < need:
                if self.pool.available:
                    self._grow(job)
                    continue
                last = self.running[-1]
                preempted.append((last, last.slot))
                self._release(last)
                last.preemptions += 1
                self.waiting.appendleft(last)
            if job.slot >= 0 and len(job.pages) > had:
                grown.append((job, had))
        return grown, preempted

    def _grow(self, job: AnyJob) -> None:
        """One more page. With `width` every slot has its own, as long as nobody else holds them."""
        place = (job.slot * self.width + len(job.pages)) % self.pool.pages
        job.pages.append(self.pool.take(self.pool.first + place if self.width else -1))

    def must_preempt(self) -> bool:
        """Whether `reserve` would preempt now."""
        missing = [self.pool.pages_for(self.places(max(j.length, j.goal))) - len(j.pages) for j in self.running]
        return sum(max(m, 0) for m in missing) > self.pool.available

    def adopt(self) -> list[tuple[AnyJob, int]]:
        """Pages that have become known take the place of those that jobs would have filled with the same.

        Returns:
            Jobs that are being read and have been given pages, and the number of the first of these.
        """
        found = []
        for job in self.running:
            before = len(job.keys)
            while (key := self._next(job)) is not None and (page := self.pool.find(key)) is not None:
                number = len(job.keys)
                self.pool.hold(page)
                self.pool.drop([job.pages[number]])
                job.pages[number] = page
                job.keys.append(key)
                job.found(self.pool.size)
            if len(job.keys) > before:
                found.append((job, before))
        return found

    def _next(self, job: AnyJob) -> bytes | None:
        """The key of the page that the job is about to begin reading; None if it is in the midst of one, or no page
        that it will read is left."""
        number, within = divmod(job.length, self.pool.size)
        return job.expected[number] if job.reading and not within and number < len(job.expected) else None

    def chunks(self) -> list[tuple[AnyJob, int]]:
        """What is read at the next step: jobs, the first admitted first, and how many tokens of each. Who would begin a
        page that another job is about to read waits for it."""
        trees = sum(not job.reading for job in self.running)
        left = max(self.rows - trees, LEAST_ROWS)
        chosen = []
        coming: set[bytes] = set()
        for job in self.running:
            if job.reading and left > 0 and self._next(job) not in coming:
                count = min(job.goal - job.length, left)
                chosen.append((job, count))
                coming.update(job.expected[job.length // self.pool.size :])
                left -= count
        return chosen

    def committed(self, job: AnyJob, length: int) -> None:
        """The first `length` tokens of the job's ids are committed; pages that are full now may be shared."""
        job.length = length
        if not self.sharing:
            return
        size = self.pool.size
        while (number := len(job.keys)) < length // size:
            parent = job.keys[-1] if job.keys else ROOT
            tokens = job.ids[number * size : (number + 1) * size]
            job.keys.append(self.pool.remember(parent, tokens, job.pages[number]))

    def leave(self, job: AnyJob) -> None:
        """It has ended, wherever it is."""
        if job.slot >= 0:
            self._release(job)
        elif job in self.waiting:
            self.waiting.remove(job)

    def _release(self, job: AnyJob) -> None:
        self.running.remove(job)
        self.pool.drop(job.pages)
        self._slots.append(job.slot)
        job.reached = max(job.reached, job.length)
        job.slot, job.pages, job.keys, job.expected, job.length, job.copy = -1, [], [], [], 0, None

    def check(self) -> None:
        """Every held page is accounted for.

        Raises:
            AssertionError: the books are wrong.
        """
        self.pool.check()
        held: dict[int, int] = {}
        for job in self.running:
            assert len(set(job.pages)) == len(job.pages)
            for page in job.pages:
                held[page] = held.get(page, 0) + 1
        assert held == self.pool._holders
        assert len({job.slot for job in self.running}) == len(self.running)
        assert all(job.slot < 0 and not job.pages for job in self.waiting)
        for job in self.running:  # what a step may write to belongs to one text alone
            for page in job.pages[job.length // self.pool.size :]:
                assert held[page] == 1
