"""The workers: what becomes of a pass, and that one run's trouble is not another's."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest

from ireko_operator.kube.client import FencedError, UnavailableError
from ireko_operator.kube.keys import Key, Pass
from ireko_operator.process.backlog import Pace
from ireko_operator.process.queue import WorkQueue
from ireko_operator.process.workers import PassResult, Workers, spread

A, B = ("team", "a"), ("team", "b")
Deed = Callable[[Key], Pass]


class Tally:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.retries = 0

    def passed(self, result: PassResult, seconds: float) -> None:
        assert seconds >= 0
        self.results[result] += 1

    def retried(self) -> None:
        self.retries += 1


class Shop:
    """Workers on a queue, doing what the test says."""

    def __init__(self, deed: Deed, *, count: int = 2) -> None:
        self.queue: WorkQueue[Key] = WorkQueue(pace=Pace(first_retry=0.02, longest_retry=0.05))
        self.tally = Tally()
        self.reconcile = deed
        self.workers = Workers(
            queue=self.queue,
            reconciler=self,
            count=count,
            telemetry=self.tally,
            about=lambda _: nullcontext(),
        )
        self.workers.start()


@pytest.fixture
def open_shop() -> Iterator[Callable[[Deed], Shop]]:
    shops: list[Shop] = []

    def start(deed: Deed) -> Shop:
        shops.append(Shop(deed))
        return shops[-1]

    yield start
    for shop in shops:
        shop.queue.close()
        assert shop.workers.join(timeout=10)


def test_a_pass_is_repeated_when_it_asked_for_it(open_shop: Callable[[Deed], Shop]) -> None:
    twice = threading.Event()
    passes: list[Key] = []

    def deed(key: Key) -> Pass:
        passes.append(key)
        if len(passes) == 2:
            twice.set()
        return Pass(requeue_after=0.01 if len(passes) == 1 else None, changed=len(passes) == 1)

    shop = open_shop(deed)
    shop.queue.add(A)
    assert twice.wait(10)
    shop.queue.close()
    assert shop.workers.join(timeout=10)
    assert shop.tally.results == {"changed": 1, "unchanged": 1}


@pytest.mark.parametrize(
    ("error", "result", "traceback"),
    [
        (UnavailableError("The API server did not answer."), "error", False),
        (KeyError("a defect"), "error", True),
        (FencedError("Another instance leads."), "fenced", None),
    ],
)
def test_a_failed_pass_is_tried_again_and_does_not_keep_others_from_theirs(
    open_shop: Callable[[Deed], Shop],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    result: str,
    traceback: bool | None,
) -> None:
    mended, others = threading.Event(), threading.Event()
    failures: list[Key] = []

    def deed(key: Key) -> Pass:
        if key == B:
            others.set()
        elif len(failures) < 3:
            failures.append(key)
            raise error
        else:
            mended.set()
        return Pass()

    with caplog.at_level(logging.ERROR):
        shop = open_shop(deed)
        shop.queue.add_all([A, B])
        assert others.wait(10)
        assert mended.wait(10)
    assert shop.tally.results[result] == 3
    assert shop.tally.retries == (0 if traceback is None else 3)
    if traceback is None:
        assert not caplog.records
    else:
        assert [bool(record.exc_info) for record in caplog.records] == [traceback] * 3
        assert str(error) in caplog.records[0].getMessage() or traceback


def test_stopping_waits_for_what_is_under_way_and_begins_nothing_more(
    open_shop: Callable[[Deed], Shop],
) -> None:
    begun, finish = threading.Event(), threading.Event()
    ended: list[Key] = []

    def deed(key: Key) -> Pass:
        begun.set()
        finish.wait(10)
        ended.append(key)
        return Pass(requeue_after=0.0)

    shop = open_shop(deed)
    shop.queue.add(A)
    assert begun.wait(10)
    shop.queue.close()
    shop.queue.add(B)
    assert not shop.workers.join(timeout=0.05)
    finish.set()
    assert shop.workers.join(timeout=10)
    assert ended == [A]


def test_passes_that_asked_for_the_same_time_are_spread() -> None:
    delays = {spread(100.0) for _ in range(50)}
    assert len(delays) > 40
    assert all(100.0 <= delay <= 110.0 for delay in delays)
