"""Registration away from the reconcile: a few threads, one registration per model at a time.

A registration makes some ten calls to MLflow, each of which may take as long as MLflow likes. It may be cut
off between any two of them, and is: before each call it is asked whether this process may still write. What
was not done is done by whoever registers next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from mlflow import MlflowClient

from ireko_api.handoff import Family
from ireko_operator import bundles, registry, tracking
from ireko_operator.errors import OperatorError, TrackingError
from ireko_operator.kube.keys import Key
from ireko_operator.reconcile.state import Registration
from ireko_operator.telemetry import NoTelemetry, RegistrationResult, Telemetry

T = TypeVar("T")

_THREADS = 4
_CLOSE_SECONDS = 10.0

log = logging.getLogger(__name__)


class AbandonedError(OperatorError):
    """The registration was cut off: by a lost lease, the end of the process or the deletion of the run."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A family to be registered."""

    key: Key
    family: Family
    model: str
    tracking_uri: str


class Background:
    """Calls to MLflow of single runs, made by a few threads; the run is woken when its call has ended."""

    def __init__(self, *, wake: Callable[[Key], None], threads: int = _THREADS) -> None:
        self._wake = wake
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="tracking")
        self._lock = threading.Lock()
        self._under_way: set[Future[Any]] = set()
        self.closing = False
        """The process ends: what has several steps stops before the next one."""

    def submit(self, key: Key, call: Callable[[], T]) -> Future[T]:
        """Make the call when a thread is free; `AbandonedError` once this is closed."""
        with self._lock:
            if self.closing:
                raise AbandonedError("Nothing is begun any more: the operator is ending.")
            future = self._pool.submit(call)
            self._under_way.add(future)
        future.add_done_callback(lambda done: self._done(key, done))
        return future

    def close(self, *, seconds: float = _CLOSE_SECONDS) -> None:
        """Begin no more calls; those under way are waited for, so that a successor does not meet them."""
        with self._lock:
            self.closing = True
            under_way = set(self._under_way)
        self._pool.shutdown(wait=False, cancel_futures=True)
        _, late = wait(under_way, timeout=seconds)
        if late:
            log.warning("%d calls to MLflow did not end within %.0f s", len(late), seconds)

    def _done(self, key: Key, future: Future[Any]) -> None:
        with self._lock:
            self._under_way.discard(future)
        if not future.cancelled():
            self._wake(key)


class Registrar:
    """Verifies and registers families in the background."""

    def __init__(
        self,
        *,
        background: Background,
        fence: Callable[[], bool],
        connect: Callable[[str], MlflowClient] = tracking.shared,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._background = background
        self._fence = fence
        self._connect = connect
        self._telemetry = telemetry or NoTelemetry()
        self._lock = threading.Lock()
        self._busy: set[tuple[str, str]] = set()

    def start(self, order: Order, *, wanted: Callable[[], bool]) -> Future[tuple[Registration, ...]] | None:
        """Begin to register, unless somebody registers versions of that model now: then None.

        `wanted` is asked before every call. The future raises `TrackingError` or `AbandonedError`.
        """
        with self._lock:
            if (order.tracking_uri, order.model) in self._busy:
                return None
            self._busy.add((order.tracking_uri, order.model))
        return self._background.submit(order.key, lambda: self._register(order, wanted))

    def _register(self, order: Order, wanted: Callable[[], bool]) -> tuple[Registration, ...]:
        started = time.monotonic()
        result: RegistrationResult = "failed"

        def before() -> None:
            if self._background.closing or not self._fence() or not wanted():
                raise AbandonedError("The registration was cut off; whoever registers next completes it.")

        try:
            with tracking.with_artifacts(order.tracking_uri):
                client = cast("MlflowClient", _Guarded(self._connect(order.tracking_uri), before))
                bundles.verify(client, uri=order.tracking_uri, family=order.family)
                done = registry.register(client, family=order.family, model=order.model)
        except TrackingError as error:
            result = "refused" if error.refused else "failed"
            raise
        else:
            result = "done"
            return done
        finally:
            with self._lock:
                self._busy.discard((order.tracking_uri, order.model))
            self._telemetry.registration(result, time.monotonic() - started)


class _Guarded:
    """A client that asks before every call."""

    def __init__(self, client: MlflowClient, before: Callable[[], None]) -> None:
        self._client = client
        self._before = before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self._before()
            return method(*arguments, **named)

        return call
