"""Pages and the scheduler: whatever happens, every page is in one place, and in the end nobody holds one."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specdec.pages import ROOT, PagePool
from specdec.scheduler import Job, Scheduler


def filled(pool: PagePool, tokens: list[int]) -> list[int]:
    """A text's full pages, taken and known."""
    pages, parent = [], ROOT
    for first in range(0, len(tokens) - pool.size + 1, pool.size):
        pages.append(pool.take())
        parent = pool.remember(parent, tokens[first : first + pool.size], pages[-1])
    return pages


def test_a_known_beginning_is_found_and_a_page_of_it_in_part() -> None:
    pool = PagePool(6, 4)
    pages = filled(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    found = pool.match([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99])
    assert (found.pages, found.partial, found.copied) == (pages[:2], pages[2], 2)
    assert pool.match([1, 2, 3]).copied == 3
    assert pool.match([2, 2, 3, 4]).pages == []
    assert pool.match([5, 6, 7, 8]).pages == []  # known after other tokens only
    assert pool.match([]).copied == 0


def test_the_same_tokens_after_other_tokens_are_another_page() -> None:
    pool = PagePool(4, 2)
    one, other = filled(pool, [1, 2, 7, 7]), filled(pool, [3, 4, 7, 7])
    assert pool.match([1, 2, 7, 7]).pages == one
    assert pool.match([3, 4, 7, 7]).pages == other


def test_what_was_let_go_first_is_evicted_first_and_ends_before_beginnings() -> None:
    pool = PagePool(4, 2)
    old, new = filled(pool, [1, 2, 3, 4]), filled(pool, [5, 6, 7, 8])
    pool.drop(old)
    pool.drop(new)
    assert pool.available == 4
    assert pool.take() == old[1]
    assert pool.match([1, 2, 3, 4]).pages == old[:1]
    for page in old[:1]:
        pool.hold(page)  # wanted again: no longer the next to go
    assert pool.take() == new[1]
    assert pool.take() == new[0]
    assert pool.match([5, 6]).pages == []
    with pytest.raises(IndexError, match="all 4 pages are held"):
        pool.take()
    pool.check()


def test_two_pages_with_the_same_tokens() -> None:
    """The first stays known; the second goes back as one that nobody knows."""
    pool = PagePool(3, 2)
    first, second = filled(pool, [1, 2]), filled(pool, [1, 2])
    assert pool.match([1, 2]).pages == first
    pool.drop(second)
    pool.drop(first)
    pool.check()
    assert pool.available == 3


def test_the_page_that_is_wanted_is_given_unless_somebody_holds_it() -> None:
    pool = PagePool(4, 2, first=1)
    assert pool.take(3) == 3
    assert pool.take(3) != 3
    pool.remember(ROOT, [1, 2], 3)
    pool.drop([3])
    assert pool.take(3) == 3, "what is known of it is given up for it"
    assert pool.match([1, 2]).pages == []
    assert pool.take(9) in (1, 2, 4)
    pool.check()


def test_the_pages_of_a_slot_lie_side_by_side() -> None:
    """Whoever comes and goes, as long as no page is shared."""
    scheduler: Scheduler[Job] = Scheduler(PagePool(12, 2), 3, 2, rows=32, sharing=False, width=4)
    draw = random.Random(3)
    for _ in range(60):
        while len(scheduler.waiting) < 3:
            scheduler.waiting.append(Job([draw.randrange(9) for _ in range(draw.randint(1, 3))], 6))
        while scheduler.admit():
            pass
        scheduler.reserve()
        for job in list(scheduler.running):
            assert job.pages == [4 * job.slot + number for number in range(len(job.pages))]
            job.ids.append(1)
            scheduler.committed(job, len(job.ids) - 1)
            if len(job.ids) >= job.most:
                scheduler.leave(job)
        scheduler.check()


def test_mistakes_are_noticed() -> None:
    pool = PagePool(2, 2)
    page = pool.take()
    with pytest.raises(ValueError, match="is not full"):
        pool.hold(page)
    pool.drop([page])
    with pytest.raises(ValueError, match="dropped more often than it was taken"):
        pool.drop([page])


class Serving(RuleBasedStateMachine):
    """The scheduler as the loop uses it: jobs come, are read, write, end, are cancelled, and are preempted. With `late`
    the host learns what a step wrote when the next one has begun, or before a job is preempted."""

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(0)
        self.size, self.room, self.late = 3, 4, 0
        self.pool = PagePool(14, self.size, first=1)
        self.jobs: list[Job] = []
        self.written: dict[int, tuple[int, ...]] = {}  # page -> all tokens up to its end, as committed
        self.flight: dict[Job, list[int]] = {}  # what the last step wrote and the host does not know

    @initialize(late=st.sampled_from([0, 1, 4]))
    def begin(self, late: int) -> None:
        self.late = late
        self.scheduler: Scheduler[Job] = Scheduler(self.pool, 4, self.room, rows=20, late=late, width=3)

    @rule(length=st.integers(1, 20), new=st.integers(1, 14), same=st.integers(0, 20))
    def arrive(self, length: int, new: int, same: int) -> None:
        ids = [1 + i % 5 for i in range(min(same, length))]
        ids += [self.random.randrange(1, 6) for _ in range(length - len(ids))]
        job = Job(ids, length + new)
        if self.scheduler.fits(job):
            self.scheduler.waiting.append(job)
            self.jobs.append(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._leave(data.draw(st.sampled_from(self.jobs)))

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        scheduler = self.scheduler
        if scheduler.must_preempt():
            self._land()
        must = scheduler.must_preempt()
        before = list(scheduler.running)
        grown, lost = scheduler.reserve()
        preempted = [job for job, _ in lost]
        assert must == bool(preempted)
        assert preempted == before[::-1][: len(preempted)], "the last admitted go first"
        assert list(scheduler.waiting)[: len(preempted)] == preempted[::-1]
        assert not any(job in self.flight for job in preempted)
        for job, had in grown:
            assert had < len(job.pages)
        while (entered := scheduler.admit()) is not None:
            self._look_at(entered)
        assert scheduler.running or not scheduler.waiting, "somebody always runs"
        for job, first in scheduler.adopt():
            assert first < len(job.keys)
            self._look_at(job)
        chunks = scheduler.chunks()
        trees = sum(not job.reading for job in scheduler.running)
        assert sum(count for _, count in chunks) <= max(20 - trees, 16)
        assert bool(chunks) == any(job.reading for job in scheduler.running)
        reading = [job for job in scheduler.running if job.reading]
        chosen = [job for job, _ in chunks]
        for job in reading[: reading.index(chosen[-1])] if chosen else []:  # the first admitted are read first
            page = tuple(job.ids[: (job.length // self.size + 1) * self.size])
            assert job in chosen or any(tuple(c.ids[: len(page)]) == page for c in chosen), "or wait for another"
        running = [job for job in scheduler.running if not job.reading]
        for job in scheduler.running:  # a tree's nodes are written behind what the last step wrote
            ahead = len(self.flight.get(job, []))
            assert ahead <= self.late
            places = range(job.length + ahead, job.length + ahead + self.room)
            assert all(self.pool._holders[job.pages[place // self.size]] == 1 for place in places)
        for job, count in chunks:
            self._commit(job, job.length + count)
        wrote = {job: data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=self.late or 4)) for job in running}
        self._land()
        self.flight = {job: tokens for job, tokens in wrote.items() if job in self.jobs}  # the others have ended
        if not self.late:
            self._land()

    def _land(self) -> None:
        """The host learns of the step in flight."""
        flight, self.flight = self.flight, {}
        for job, tokens in flight.items():
            job.ids += tokens[: job.most - len(job.ids)]
            self._commit(job, len(job.ids) - 1)
            if len(job.ids) >= job.most:
                self._leave(job)

    def _leave(self, job: Job) -> None:
        self.scheduler.leave(job)
        self.jobs.remove(job)
        self.flight.pop(job, None)

    def _look_at(self, job: Job) -> None:
        """What a job finds in its pages is its own text."""
        known = tuple(job.ids[: job.length])
        for number in range(job.length // self.size):
            assert self.written[job.pages[number]] == known[: (number + 1) * self.size]
        if job.copy is not None:
            source, target, count = job.copy
            assert target == job.pages[job.length // self.size]
            assert self.written[source][: job.length] == known
            assert count == job.length % self.size
        assert job.length <= max(job.goal - 1, 0)
        assert 0 <= job.shared <= job.length

    def _commit(self, job: Job, length: int) -> None:
        """What is written where, and that no page which another text holds is written to."""
        for place in range(job.length, length):
            page = job.pages[place // self.size]
            assert self.pool._holders[page] == 1
            self.written[page] = tuple(job.ids[: place + 1])
        self.scheduler.committed(job, length)

    @invariant()
    def books_are_right(self) -> None:
        self.scheduler.check()
        for job in self.scheduler.running:  # less than a page more than its text, and what a step may write, takes
            assert len(job.pages) * self.size - self.scheduler.places(max(job.length, job.goal)) < self.size
        for page, known in self.pool._known.items():
            assert self.written[page][-self.size :] == tuple(known.tokens)

    def teardown(self) -> None:
        for job in self.jobs:
            self.scheduler.leave(job)
        self.pool.check()
        assert self.pool.held == 0
        assert self.pool.available == 14


Serving.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestServing = Serving.TestCase


def test_first_come_first_served_and_nobody_starves() -> None:
    """A large one at the head of the queue is waited for, though small ones behind it would fit."""
    pool = PagePool(10, 4)
    scheduler: Scheduler[Job] = Scheduler(pool, 8, 4, rows=32)
    small, large, late = Job([1] * 20, 30), Job([2] * 24, 30), Job([3] * 2, 8)
    scheduler.waiting.extend([small, large, late])
    assert scheduler.admit() is small
    assert scheduler.admit() is None
    assert list(scheduler.waiting) == [large, late]
    scheduler.leave(small)
    assert scheduler.admit() is large
    assert scheduler.admit() is late


def test_what_two_are_to_read_is_read_once() -> None:
    """Both come at once: the second waits while the first reads, takes its pages, and reads what is its own."""
    pool = PagePool(20, 4)
    scheduler: Scheduler[Job] = Scheduler(pool, 3, 4, rows=7)
    first, second, other = Job([1] * 13, 20), Job([1] * 10 + [2] * 4, 20), Job([3] * 3, 20)
    scheduler.waiting.extend([first, second, other])
    while scheduler.admit():
        pass
    read = []
    for _ in range(9):
        scheduler.adopt()
        chunks = scheduler.chunks()
        read += [(job, count) for job, count in chunks]
        for job, count in chunks:
            scheduler.committed(job, job.length + count)
        scheduler.check()
    assert sum(count for job, count in read if job is first) == 12
    assert sum(count for job, count in read if job is second) == 13 - 8
    assert second.shared == 8
    assert second.pages[:2] == first.pages[:2]
    assert not any(job.reading for job in scheduler.running)


def read(scheduler: Scheduler[Job]) -> None:
    """All prompts, to their goals."""
    while any(job.reading for job in scheduler.running):
        scheduler.adopt()
        for job, count in scheduler.chunks():
            scheduler.committed(job, job.length + count)


def test_what_a_job_finds_again_of_its_own_is_not_shared() -> None:
    """Sent back when it had read all, it takes its own pages; the one before it has a beginning of it."""
    scheduler: Scheduler[Job] = Scheduler(PagePool(9, 4), 2, 4, rows=32)
    first, second = Job([1] * 13, 29), Job([1] * 8 + [2] * 5, 14)
    scheduler.waiting.append(first)
    assert scheduler.admit() is first
    read(scheduler)
    scheduler.waiting.append(second)
    assert scheduler.admit() is second
    read(scheduler)
    assert second.shared == 8
    while not second.preemptions:
        first.ids.append(7)
        scheduler.committed(first, len(first.ids) - 1)
        scheduler.reserve()
    assert (second.reached, second.length) == (12, 0)
    scheduler.leave(first)
    assert scheduler.admit() is second
    assert second.length > 8, "its third page is still there, in part or whole"
    assert second.shared == 8


def test_what_others_read_while_it_was_away_is_shared() -> None:
    """It had read five of its tokens when it was sent back, and another one reads all of them before it returns."""
    scheduler: Scheduler[Job] = Scheduler(PagePool(12, 4), 2, 4, rows=32)
    job, other = Job([1] * 14, 16), Job([1] * 14, 16)
    scheduler.waiting.append(job)
    assert scheduler.admit() is job
    scheduler.committed(job, 5)
    scheduler._release(job)
    scheduler.waiting.append(other)
    assert scheduler.admit() is other
    assert other.shared == 4
    read(scheduler)
    scheduler.waiting.append(job)
    assert scheduler.admit() is job
    assert job.length == 12
    assert job.shared == 12 - 5


def test_who_was_refused_is_asked_again_when_what_it_needs_is_known() -> None:
    """Its beginning is read by another meanwhile: it needs fewer pages, though none more are free."""
    pool = PagePool(8, 4)
    scheduler: Scheduler[Job] = Scheduler(pool, 3, 4, rows=32)
    first, same = Job([1] * 17, 18), Job([1] * 16 + [2], 18)
    scheduler.waiting.extend([first, same])
    assert scheduler.admit() is first
    assert scheduler.admit() is None
    (chunk,) = scheduler.chunks()
    scheduler.committed(first, chunk[1])
    assert scheduler.admit() is same
    assert same.shared == 15  # three of them copied


def test_slots_are_taken_in_turn() -> None:
    """What is known of a slot's pages is kept for as long as there are others."""
    scheduler: Scheduler[Job] = Scheduler(PagePool(12, 4), 3, 2, rows=32, width=4)
    seen = []
    for _ in range(4):
        job = Job([1] * 3, 6)
        scheduler.waiting.append(job)
        assert scheduler.admit() is job
        seen.append(job.slot)
        scheduler.leave(job)
    assert seen == [0, 1, 2, 0]


def test_a_page_is_spared_for_those_alone_who_will_want_one() -> None:
    """Pages that hold a whole text: as many texts run as there are pages."""
    scheduler: Scheduler[Job] = Scheduler(PagePool(3, 16), 3, 4, rows=32, sharing=False)
    jobs = [Job([number] * 5, 12) for number in range(3)]
    scheduler.waiting.extend(jobs)
    assert [scheduler.admit() for _ in jobs] == jobs


def test_the_first_admitted_is_never_preempted() -> None:
    pool = PagePool(6, 4)
    scheduler: Scheduler[Job] = Scheduler(pool, 2, 4, rows=32, sharing=False)
    first, second = Job([1] * 5, 21), Job([2] * 5, 21)
    scheduler.waiting.extend([first, second])
    assert scheduler.fits(first)
    while scheduler.admit():
        pass
    preempted = 0
    while first in scheduler.running:
        gone = scheduler.reserve()[1]
        preempted += len(gone)
        assert first not in [job for job, _ in gone]
        for job in scheduler.running:
            job.ids.append(7)
            scheduler.committed(job, len(job.ids) - 1)
        if len(first.ids) == first.most:
            scheduler.leave(first)
        scheduler.check()
    assert preempted >= 1


def test_what_is_larger_than_the_pool_does_not_fit() -> None:
    scheduler: Scheduler[Job] = Scheduler(PagePool(4, 4), 2, 4, rows=32)
    assert scheduler.fits(Job([1], 13))
    assert not scheduler.fits(Job([1], 14))
