"""The end of an attempt: what MLflow holds of it, read and registered in the background.

A pass never waits for MLflow. It starts the reading or the registration, goes on with other runs, and is
woken when the answer is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from mlflow import MlflowClient

from ireko_api.handoff import Family
from ireko_api.spec import CompressionRun
from ireko_operator import tracking
from ireko_operator.errors import TrackingError
from ireko_operator.kube.keys import Key
from ireko_operator.reconcile.memory import Ending, RunMemory
from ireko_operator.reconcile.observe import Tracked, ask_mlflow, lost, model_of
from ireko_operator.registrar import AbandonedError, Background, Order, Registrar

T = TypeVar("T")

RETRY_SECONDS = 5.0
"""Between two tries to read or register while MLflow is away."""


class Endings:
    """Reads and registers what attempts left in MLflow."""

    def __init__(
        self,
        *,
        background: Background,
        registrar: Registrar,
        connect: Callable[[str], MlflowClient] = tracking.shared,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._background = background
        self._registrar = registrar
        self._connect = connect
        self._monotonic = monotonic

    def of(
        self, run: CompressionRun, number: int, *, key: Key, uri: str, memory: RunMemory, now: datetime
    ) -> Tracked | None:
        """What MLflow says of attempt `number`, which has ended; None until it has said anything."""
        ending = memory.ending
        if ending is None or ending.attempt != number:
            ending = memory.ending = Ending(attempt=number)
        self._take_reading(ending, now)
        self._take_registration(ending, now)
        if ending.reading is None and self._wants_reading(ending):
            ending.reading = self._background.submit(key, lambda: self._read(run, memory.uid, uri))
        if ending.read is None:
            return None
        return replace(ending.read, outage=ending.read.outage or ending.unregistered)

    def register(
        self, run: CompressionRun, family: Family, *, key: Key, uri: str, memory: RunMemory
    ) -> float | None:
        """Begin to register the family, if nobody does; seconds after which to ask again."""
        ending = memory.ending
        if ending is None or ending.registering is not None:
            return None
        if ending.unregistered is not None:
            wait = ending.tried_at + RETRY_SECONDS - self._monotonic()
            if wait > 0:
                return wait
        order = Order(key=key, family=family, model=model_of(run), tracking_uri=uri)
        ending.registering = self._registrar.start(order, wanted=lambda: not memory.gone)
        return RETRY_SECONDS if ending.registering is None else None

    def retry_in(self, memory: RunMemory) -> float | None:
        """Seconds after which MLflow is worth asking again; None where it answered or is being asked."""
        ending = memory.ending
        if ending is None or ending.reading is not None or ending.read is None or ending.read.outage is None:
            return None
        return max(0.0, ending.tried_at + RETRY_SECONDS - self._monotonic())

    def _wants_reading(self, ending: Ending) -> bool:
        if ending.read is None:
            return True
        return ending.read.outage is not None and self._monotonic() >= ending.tried_at + RETRY_SECONDS

    def _take_reading(self, ending: Ending, now: datetime) -> None:
        future, ending.reading = _done(ending.reading)
        if future is None:
            return
        ending.tried_at = self._monotonic()
        try:
            ending.read = future.result()
        except TrackingError as error:
            before = ending.read or Tracked()
            ending.read = replace(before, outage=lost(before.outage, error, now=now))

    def _take_registration(self, ending: Ending, now: datetime) -> None:
        future, ending.registering = _done(ending.registering)
        if future is None:
            return
        ending.tried_at = self._monotonic()
        try:
            registrations = future.result()
        except TrackingError as error:
            ending.unregistered = lost(ending.unregistered, error, now=now)
        except AbandonedError:
            return
        else:
            ending.unregistered = None
            ending.read = replace(ending.read or Tracked(), registrations=registrations)

    def _read(self, run: CompressionRun, uid: str, uri: str) -> Tracked:
        with tracking.with_artifacts(uri):
            return ask_mlflow(self._connect(uri), uri=uri, run=run, uid=uid, with_family=True)


def _done(future: Future[T] | None) -> tuple[Future[T] | None, Future[T] | None]:
    """The future when it is done, and else what to go on waiting for."""
    if future is not None and future.done():
        return future, None
    return None, future
