"""Leader election: the decision as a table, the fence, and contenders under random failures and delays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ireko_operator.kube.client import AlreadyExistsError, ConflictError, UnavailableError
from ireko_operator.process.lease import Elector, Fence, Move, Record, Seen, Times, decide


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """One Lease with versions, as the API server keeps it."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.version = 0

    def put(self, record: Record) -> str:
        self.record = record
        self.version += 1
        return str(self.version)


class Road:
    """The way to the shelf: `trouble` says before or after which end the next request is lost, and how slow it is."""

    def __init__(self, shelf: Shelf, clock: Clock) -> None:
        self._shelf = shelf
        self._clock = clock
        self.trouble: str = ""
        self.slow = 0.0

    def _go(self) -> None:
        if self.trouble == "request lost":
            raise UnavailableError("no way")

    def _return(self) -> None:
        self._clock.now += self.slow
        if self.trouble == "answer lost":
            raise UnavailableError("no way back")

    def read(self) -> tuple[Record, str] | None:
        self._go()
        found = self._shelf.record
        answer = None if found is None else (found, str(self._shelf.version))
        self._return()
        return answer

    def create(self, record: Record) -> str:
        self._go()
        if self._shelf.record is not None:
            raise AlreadyExistsError("there")
        version = self._shelf.put(record)
        self._return()
        return version

    def replace(self, record: Record, version: str) -> str:
        self._go()
        if self._shelf.record is None or version != str(self._shelf.version):
            raise ConflictError("changed")
        new = self._shelf.put(record)
        self._return()
        return new


class Contender:
    """An elector with a road and a fence of its own."""

    def __init__(self, name: str, shelf: Shelf, clock: Clock) -> None:
        self.road = Road(shelf, clock)
        self.fence = Fence(clock=clock)
        self.elector = Elector(store=self.road, identity=name, fence=self.fence, clock=clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


HELD = Record(holder="other", duration=15.0)


@pytest.mark.parametrize(
    ("seen", "now", "move"),
    [
        (None, 0.0, "create"),
        (Seen(record=HELD, version="1", at=100.0), 100.0, "wait"),
        (Seen(record=HELD, version="1", at=100.0), 114.9, "wait"),
        (Seen(record=HELD, version="1", at=100.0), 115.0, "take"),
        (Seen(record=Record(holder="", duration=15.0), version="1", at=100.0), 100.0, "take"),
        (Seen(record=Record(holder="other", duration=1.0), version="1", at=100.0), 101.0, "take"),
    ],
)
def test_a_lease_is_taken_when_it_is_free_or_was_not_renewed_for_its_duration(
    seen: Seen | None, now: float, move: Move
) -> None:
    assert decide(seen, now=now) == move


def test_a_fence_that_has_closed_by_the_clock_does_not_open_again(clock: Clock) -> None:
    fence = Fence(clock=clock)
    assert not fence()
    assert fence.open_until(clock.now + 10)
    assert fence()
    clock.now += 10
    assert not fence()
    assert not fence.open_until(clock.now + 10)
    assert not fence()


def test_the_first_contender_leads_and_the_second_waits(clock: Clock, shelf: Shelf) -> None:
    first, second = Contender("first", shelf, clock), Contender("second", shelf, clock)
    for _ in range(30):
        first.elector.step()
        second.elector.step()
        clock.now += 2.0
    assert first.elector.leading
    assert first.fence()
    assert not second.elector.elected.is_set()
    assert second.elector.leader == "first"


def test_a_successor_takes_over_after_the_duration_and_not_earlier(clock: Clock, shelf: Shelf) -> None:
    first, second = Contender("first", shelf, clock), Contender("second", shelf, clock)
    first.elector.step()
    died = clock.now
    while not second.elector.elected.is_set():
        second.elector.step()
        clock.now += 0.5
    assert 15.0 <= clock.now - died <= 16.0
    assert shelf.record is not None
    assert shelf.record.transitions == 1


def test_the_fence_closes_before_a_successor_may_begin_though_the_renewing_thread_hangs(
    clock: Clock, shelf: Shelf
) -> None:
    first, second = Contender("first", shelf, clock), Contender("second", shelf, clock)
    first.elector.step()
    second.elector.step()
    clock.now += 9.9
    assert first.fence()
    clock.now += 0.1
    assert not first.fence()
    second.elector.step()
    assert not second.elector.elected.is_set()


def test_a_renewal_that_took_longer_than_the_deadline_is_no_renewal(clock: Clock, shelf: Shelf) -> None:
    only = Contender("only", shelf, clock)
    only.elector.step()
    only.road.slow = 11.0
    only.elector.step()
    assert not only.fence()
    assert only.elector.lost.is_set()


def test_an_answer_that_was_lost_does_not_cost_the_lease(clock: Clock, shelf: Shelf) -> None:
    only = Contender("only", shelf, clock)
    only.elector.step()
    clock.now += 2.0
    only.road.trouble = "answer lost"
    only.elector.step()
    clock.now += 2.0
    only.road.trouble = ""
    for _ in range(5):
        only.elector.step()
        clock.now += 2.0
    assert only.elector.leading


@pytest.mark.parametrize("thief", ["somebody", ""])
def test_a_leader_that_finds_another_holder_stops_at_once(clock: Clock, shelf: Shelf, thief: str) -> None:
    only = Contender("only", shelf, clock)
    only.elector.step()
    shelf.put(Record(holder=thief, duration=15.0))
    clock.now += 2.0
    only.elector.step()
    assert only.elector.lost.is_set()
    assert only.elector.why_lost == f"{thief or 'nobody'} holds it"
    assert not only.fence()


def test_a_released_lease_is_taken_at_the_next_look(clock: Clock, shelf: Shelf) -> None:
    first, second = Contender("first", shelf, clock), Contender("second", shelf, clock)
    first.elector.step()
    second.elector.step()
    first.elector.release()
    assert not first.fence()
    second.elector.step()
    assert second.elector.leading


def test_a_contender_that_does_not_lead_releases_nothing(clock: Clock, shelf: Shelf) -> None:
    first, second = Contender("first", shelf, clock), Contender("second", shelf, clock)
    first.elector.step()
    second.elector.step()
    second.elector.release()
    assert shelf.record is not None
    assert shelf.record.holder == "first"


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["", "", "", "request lost", "answer lost"]),
        st.sampled_from([0.0, 0.0, 0.1, 3.0, 12.0, 20.0]),
        st.sampled_from([0.0, 0.5, 2.0, 2.0, 9.0, 16.0]),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_never_may_two_write_whatever_is_lost_or_slow(steps: list[tuple[int, str, float, float]]) -> None:
    clock, shelf = Clock(), Shelf()
    contenders = [Contender(str(number), shelf, clock) for number in range(3)]
    for number, trouble, slow, pause in steps:
        contender = contenders[number]
        contender.road.trouble, contender.road.slow = trouble, slow
        contender.elector.step()
        clock.now += pause
        assert sum(one.fence() for one in contenders) <= 1
        for one in contenders:
            if one.elector.leading:
                assert shelf.record is not None
                assert one.fence.remaining() <= Times().deadline
