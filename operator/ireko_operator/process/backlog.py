"""Which key is looked at next, decided without threads and without a clock of its own.

Events come in bursts and name the same few keys over and over, passes fail, and passes ask to be repeated later.
What the queue promises, whatever happens:

* a key that was added is taken some time after that: nothing is lost;
* no key is taken while it is taken already; if it is added meanwhile, it is taken once more afterwards;
* a key has at most one entry, and the earliest time that anybody asked for wins;
* keys that are due are taken in the order in which they became due, so that no key starves another; but those
  that were added `first` go before the others;
* no more than `rate` keys per second are taken once `burst` are used up, so that a start with thousands of runs
  does not fall upon the API server at once.

Times are seconds of any clock that does not run backwards; every method is told the time.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SHORTEST_PAUSE = 0.001
"""Waiting for less than this can round to not waiting at all."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast keys are taken and how long a failing key waits."""

    rate: float = 200.0
    """Keys per second in the long run."""
    burst: int = 200
    """Keys that may be taken at once."""
    first_retry: float = 1.0
    """Seconds before a key that failed once is taken again; doubles with every failure in a row."""
    longest_retry: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How much there is to do."""

    due: int
    """Keys that wait for a worker."""
    later: int
    """Keys whose time has not come."""
    running: int
    oldest_due: float
    """Seconds that the longest waiting key has been due."""
    longest_run: float
    """Seconds since the key that has been out longest was taken."""


class Backlog(Generic[K]):
    """Keys to look at: now, later, and those being looked at."""

    def __init__(self, *, pace: Pace, now: float, chance: random.Random | None = None) -> None:
        self._pace = pace
        self._chance = chance or random.Random()
        self._first: OrderedDict[K, float] = OrderedDict()
        self._due: OrderedDict[K, float] = OrderedDict()
        """Since when a key has been due, in the order in which they are taken, after those of `_first`."""
        self._later: dict[K, float] = {}
        self._times: list[tuple[float, int, K]] = []
        """The keys of `_later` by time; entries that `_later` contradicts are stale."""
        self._order = itertools.count()
        self._running: dict[K, float] = {}
        self._again: dict[K, float] = {}
        """When a key that is being looked at is to be looked at once more."""
        self._failures: dict[K, int] = {}
        self._tokens = float(pace.burst)
        self._tokens_at = now

    def add(self, key: K, *, now: float, delay: float = 0.0) -> None:
        """Have `key` taken in `delay` seconds, or earlier if that was asked before."""
        time = now + max(delay, 0.0)
        if key in self._running:
            self._again[key] = min(time, self._again.get(key, time))
        elif key not in self._due and key not in self._first:
            self._enter(key, time, now)

    def add_first(self, key: K, *, now: float) -> None:
        """Have `key` taken before all that were not added so."""
        self.add(key, now=now)
        if key in self._due:
            self._first[key] = self._due.pop(key)

    def take(self, *, now: float) -> K | None:
        """The key to look at now; None when nothing is due or the rate is used up."""
        self._promote(now)
        if not (self._first or self._due) or not self._spend(now):
            return None
        key, _ = (self._first or self._due).popitem(last=False)
        self._running[key] = now
        return key

    def done(self, key: K, *, now: float) -> None:
        """The pass over `key` has ended, in whatever way."""
        del self._running[key]
        if key in self._again:
            self._enter(key, self._again.pop(key), now)

    def retry(self, key: K, *, now: float) -> float:
        """Have a key that failed taken again after a pause that grows with its failures; the pause in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        longest = min(self._pace.first_retry * 2.0 ** min(failures, 64), self._pace.longest_retry)
        pause = longest * self._chance.uniform(0.5, 1.0)  # those that failed together come back apart
        self.add(key, now=now, delay=pause)
        return pause

    def forget(self, key: K) -> None:
        """The pass over `key` went well: its next failure is its first."""
        self._failures.pop(key, None)

    def pause(self, *, now: float) -> float | None:
        """Seconds until `take` may give something if nothing is added; None for never."""
        self._promote(now)
        if self._first or self._due:
            self._refill(now)
            missing = 1.0 - self._tokens
            return max(missing / self._pace.rate, _SHORTEST_PAUSE) if missing > 0 else 0.0
        return max(0.0, self._times[0][0] - now) if self._times else None

    def depth(self, *, now: float) -> Depth:
        """How much there is to do at this moment."""
        self._promote(now)
        return Depth(
            due=len(self._first) + len(self._due),
            later=len(self._later),
            running=len(self._running),
            oldest_due=now - min(next(iter(keys.values()), now) for keys in (self._first, self._due)),
            longest_run=now - min(self._running.values(), default=now),
        )

    def _enter(self, key: K, time: float, now: float) -> None:
        if time <= now:
            self._later.pop(key, None)
            self._due[key] = now
        elif time < self._later.get(key, float("inf")):
            self._later[key] = time
            heapq.heappush(self._times, (time, next(self._order), key))

    def _promote(self, now: float) -> None:
        while self._times:
            time, _, key = self._times[0]
            stale = self._later.get(key) != time
            if not stale and time > now:
                return
            heapq.heappop(self._times)
            if not stale:
                del self._later[key]
                self._due[key] = time

    def _refill(self, now: float) -> None:
        earned = (now - self._tokens_at) * self._pace.rate
        self._tokens = min(float(self._pace.burst), self._tokens + earned)
        self._tokens_at = now

    def _spend(self, now: float) -> bool:
        self._refill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
