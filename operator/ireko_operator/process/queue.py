"""The work queue: a `Backlog` that several threads share and can wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic

from ireko_operator.process.backlog import Backlog, Depth, K, Pace


class WorkQueue(Generic[K]):
    """Keys to look at. Whoever takes one must tell how it went: `succeeded` or `failed`."""

    def __init__(self, *, pace: Pace | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._backlog: Backlog[K] = Backlog(pace=pace or Pace(), now=clock())
        self._changed = threading.Condition()
        self._closed = False
        self._last_finish = clock()

    def add(self, key: K, *, delay: float = 0.0) -> None:
        """Have `key` looked at, in `delay` seconds; nothing is taken on after `close`."""
        with self._changed:
            if not self._closed:
                self._backlog.add(key, now=self._clock(), delay=delay)
                self._changed.notify()

    def add_all(self, keys: Iterable[K], *, first: bool = False) -> None:
        """Have every key looked at now, or even before the others."""
        for key in keys:
            with self._changed:
                if not self._closed:
                    add = self._backlog.add_first if first else self._backlog.add
                    add(key, now=self._clock())
                    self._changed.notify()

    def take(self) -> K | None:
        """Wait for a key to look at; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                key = self._backlog.take(now=now)
                pause = self._backlog.pause(now=now)
                if key is not None:
                    if pause is not None:
                        self._changed.notify()  # somebody else must now wait for the next one to become due
                    return key
                self._changed.wait(pause)
            return None

    def succeeded(self, key: K, *, again_in: float | None = None) -> None:
        """The pass over a taken key went well; with `again_in`, it is looked at once more in so many seconds."""
        with self._changed:
            self._backlog.forget(key)
            if again_in is not None:
                self._backlog.add(key, now=self._clock(), delay=again_in)
            self._finish(key)

    def failed(self, key: K) -> float:
        """The pass over a taken key failed; the seconds after which it is tried again."""
        with self._changed:
            pause = self._backlog.retry(key, now=self._clock())
            self._finish(key)
            return pause

    def close(self) -> None:
        """Give out nothing more; whoever waits in `take` returns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def depth(self) -> Depth:
        """How much there is to do at this moment."""
        with self._changed:
            return self._backlog.depth(now=self._clock())

    def seconds_since_last_finish(self) -> float:
        """Seconds since the last pass ended, or since the queue was made."""
        with self._changed:
            return self._clock() - self._last_finish

    def _finish(self, key: K) -> None:
        self._last_finish = self._clock()
        self._backlog.done(key, now=self._last_finish)
        self._changed.notify()
