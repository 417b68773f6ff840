"""The promises of the work queue, against random histories under a clock that the test holds."""

from __future__ import annotations

import random
import threading
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ireko_operator.process.backlog import Backlog, Pace
from ireko_operator.process.queue import WorkQueue

UNLIMITED = Pace(rate=1e9, burst=10**9)
KEYS = st.sampled_from("abcde")


class Histories(RuleBasedStateMachine):
    """Adds, takes and ends in any order; `wanted` says what the queue owes."""

    pace: ClassVar[Pace] = UNLIMITED

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.backlog: Backlog[str] = Backlog(pace=self.pace, now=self.now, chance=random.Random(0))
        self.wanted: dict[str, float] = {}
        """When a key is owed, at the latest time that fits what was asked."""
        self.running: set[str] = set()

    def _want(self, key: str, time: float) -> None:
        self.wanted[key] = min(time, self.wanted.get(key, time))

    @rule(key=KEYS, delay=st.sampled_from([0.0, 0.0, 0.5, 3.0, 60.0]))
    def add(self, key: str, delay: float) -> None:
        self.backlog.add(key, now=self.now, delay=delay)
        self._want(key, self.now + delay)

    @rule(key=KEYS)
    def add_first(self, key: str) -> None:
        self.backlog.add_first(key, now=self.now)
        self._want(key, self.now)

    @rule()
    def take(self) -> None:
        key = self.backlog.take(now=self.now)
        due = {owed for owed, time in self.wanted.items() if time <= self.now and owed not in self.running}
        if key is None:
            assert not due, "a key that is due and free is given out"
            return
        assert key in due, "only keys that are due and free are given out"
        del self.wanted[key]
        self.running.add(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.backlog.forget(key)
        self.backlog.done(key, now=self.now)
        self.running.remove(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        pause = self.backlog.retry(key, now=self.now)
        assert 0 < pause <= self.pace.longest_retry
        self._want(key, self.now + pause)
        self.backlog.done(key, now=self.now)
        self.running.remove(key)

    @rule(seconds=st.sampled_from([0.01, 1.0, 10.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nobody_has_two_entries(self) -> None:
        depth = self.backlog.depth(now=self.now)
        free = {key for key in self.wanted if key not in self.running}
        assert depth.due + depth.later == len(free)
        assert depth.running == len(self.running)

    @invariant()
    def the_pause_ends_when_the_next_key_is_due(self) -> None:
        free = [time for key, time in self.wanted.items() if key not in self.running]
        pause = self.backlog.pause(now=self.now)
        if not free:
            assert pause is None
        else:
            assert pause == pytest.approx(max(0.0, min(free) - self.now))

    def teardown(self) -> None:
        """Whatever happened: with everybody done, every key that is owed comes out, once."""
        for key in sorted(self.running):
            self.backlog.done(key, now=self.now)
        taken: list[str] = []
        while (pause := self.backlog.pause(now=self.now)) is not None:
            self.now += pause
            key = self.backlog.take(now=self.now)
            if key is not None:
                self.backlog.done(key, now=self.now)
                taken.append(key)
        assert sorted(taken) == sorted(self.wanted)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@given(keys=st.lists(st.integers(0, 30), max_size=60))
def test_keys_are_taken_in_the_order_in_which_they_were_added(keys: list[int]) -> None:
    backlog: Backlog[int] = Backlog(pace=UNLIMITED, now=0.0)
    for key in keys:
        backlog.add(key, now=0.0)
    taken = []
    while (key := backlog.take(now=0.0)) is not None:
        taken.append(key)
    assert taken == list(dict.fromkeys(keys))


def test_keys_that_were_added_first_go_before_the_others_and_in_their_order() -> None:
    backlog: Backlog[str] = Backlog(pace=UNLIMITED, now=0.0)
    for key in "abc":
        backlog.add(key, now=0.0)
    for key in "dcd":
        backlog.add_first(key, now=1.0)
    assert backlog.depth(now=2.0).oldest_due == 2.0
    assert [backlog.take(now=2.0) for _ in range(5)] == ["d", "c", "a", "b", None]


def test_a_busy_key_does_not_starve_the_others() -> None:
    backlog: Backlog[str] = Backlog(pace=UNLIMITED, now=0.0)
    for key in "abc":
        backlog.add(key, now=0.0)
    order = []
    for now in range(6):
        key = backlog.take(now=now)
        assert key is not None
        backlog.add("a", now=now)  # somebody never stops changing it
        backlog.done(key, now=now)
        order.append(key)
    assert order[:4] == ["a", "b", "c", "a"]


@given(count=st.integers(1, 300), rate=st.floats(0.5, 500), burst=st.integers(1, 50))
def test_a_herd_is_taken_at_the_rate_after_the_burst(count: int, rate: float, burst: int) -> None:
    backlog: Backlog[int] = Backlog(pace=Pace(rate=rate, burst=burst), now=0.0)
    for key in range(count):
        backlog.add(key, now=0.0)
    now, taken = 0.0, 0
    while (pause := backlog.pause(now=now)) is not None:
        now += pause
        if backlog.take(now=now) is not None:
            taken += 1
        assert taken <= burst + rate * now + 1e-6
    assert taken == count
    assert now <= max(0, count - burst) / rate + 0.002 * count


def test_the_pause_of_a_failing_key_doubles_up_to_the_cap_and_starts_again_after_success() -> None:
    pace = Pace(rate=1e9, burst=10**9, first_retry=1.0, longest_retry=10.0)
    backlog: Backlog[str] = Backlog(pace=pace, now=0.0, chance=random.Random(0))

    def fail() -> float:
        return backlog.retry("a", now=0.0)

    pauses = [fail() for _ in range(8)]
    for pause, longest in zip(pauses, [1, 2, 4, 8, 10, 10, 10, 10], strict=True):
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses), "those that failed together come back apart"
    backlog.forget("a")
    assert fail() <= 1.0


def test_depth_tells_the_age_of_the_oldest_waiting_key_and_of_the_longest_pass() -> None:
    backlog: Backlog[str] = Backlog(pace=UNLIMITED, now=0.0)
    backlog.add("a", now=0.0)
    assert backlog.take(now=1.0) == "a"
    backlog.add("b", now=2.0)
    backlog.add("c", now=3.0, delay=4.0)
    depth = backlog.depth(now=10.0)
    assert (depth.due, depth.later, depth.running) == (2, 0, 1)
    assert depth.oldest_due == 8.0
    assert depth.longest_run == 9.0


def test_threads_share_the_queue_without_working_on_one_key_at_once() -> None:
    queue: WorkQueue[int] = WorkQueue(pace=UNLIMITED)
    at_work: set[int] = set()
    overlaps: list[int] = []
    passes: dict[int, int] = dict.fromkeys(range(10), 0)
    enough = threading.Event()

    def work() -> None:
        while (key := queue.take()) is not None:
            if key in at_work:
                overlaps.append(key)
            at_work.add(key)
            passes[key] += 1
            if passes[key] < 30:
                queue.add(key)  # while it is being worked on
            at_work.discard(key)
            queue.succeeded(key)
            if all(count >= 30 for count in passes.values()):
                enough.set()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    queue.add_all(range(10))
    assert enough.wait(30)
    queue.close()
    for thread in threads:
        thread.join(10)
    assert not overlaps
    assert set(passes.values()) == {30}


def test_a_delayed_key_is_taken_though_the_worker_that_waited_for_it_is_busy() -> None:
    queue: WorkQueue[str] = WorkQueue(pace=UNLIMITED)
    busy, second = threading.Event(), threading.Event()

    def work() -> None:
        while (key := queue.take()) is not None:
            if key == "long":
                busy.wait(30)
            else:
                second.set()
            queue.succeeded(key)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    queue.add("long", delay=0.05)
    queue.add("short", delay=0.1)
    assert second.wait(10), "the other worker waits for it now"
    busy.set()
    queue.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_closed_queue_gives_out_nothing_more() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.close()
    queue.add("b")
    assert queue.take() is None
