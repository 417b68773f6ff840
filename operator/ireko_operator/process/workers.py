"""The threads that work the queue off.

They are threads because a pass makes blocking calls, to the API server and to MLflow, and they are few, so that
however many runs there are, both see that many requests at a time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, Protocol, get_args

from ireko_operator.errors import OperatorError
from ireko_operator.kube.client import FencedError
from ireko_operator.kube.keys import Key, Reconciler
from ireko_operator.process.queue import WorkQueue

logger = logging.getLogger(__name__)

PassResult = Literal["changed", "unchanged", "error", "fenced"]
"""Something was written; nothing was to be written; it failed; this process may not write any more."""
PASS_RESULTS: tuple[PassResult, ...] = get_args(PassResult)

_SPREAD = 0.1
"""Passes that asked to be repeated at the same time are spread over this share of the delay."""


class PassTelemetry(Protocol):
    """Told of every pass."""

    def passed(self, result: PassResult, seconds: float) -> None:
        """A pass ended."""

    def retried(self) -> None:
        """A pass that failed will be repeated."""


class Workers:
    """A fixed number of threads that give every key they take to the reconciler."""

    def __init__(
        self,
        *,
        queue: WorkQueue[Key],
        reconciler: Reconciler,
        count: int,
        telemetry: PassTelemetry,
        about: Callable[[Key], AbstractContextManager[object]],
    ) -> None:
        """`about(key)` is held during a pass, so that what is logged names the run."""
        self._queue = queue
        self._reconciler = reconciler
        self._telemetry = telemetry
        self._about = about
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Start working."""
        for thread in self._threads:
            thread.start()

    def join(self, *, timeout: float) -> bool:
        """Wait until every worker has ended what it was doing; whether they all did in that many seconds.

        They end only once the queue is closed.
        """
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (key := self._queue.take()) is not None:
            with self._about(key):
                self._look_at(key)

    def _look_at(self, key: Key) -> None:
        started = time.monotonic()
        try:
            outcome = self._reconciler.reconcile(key)
        except FencedError:
            self._queue.failed(key)
            self._telemetry.passed("fenced", time.monotonic() - started)
        except (
            Exception
        ) as error:  # one run's trouble, even a defect of ours, must not end the work on all others
            pause = self._queue.failed(key)
            logger.error(
                "The run could not be brought forward; trying again in %.0f s. %s",
                pause,
                error if isinstance(error, OperatorError) else "",
                exc_info=not isinstance(error, OperatorError),
            )
            self._telemetry.passed("error", time.monotonic() - started)
            self._telemetry.retried()
        else:
            delay = outcome.requeue_after
            self._queue.succeeded(key, again_in=None if delay is None else spread(delay))
            self._telemetry.passed("changed" if outcome.changed else "unchanged", time.monotonic() - started)


def spread(delay: float) -> float:
    """The delay, made up to a tenth longer: what was started together need not come back together."""
    return delay * (1.0 + _SPREAD * random.random())
