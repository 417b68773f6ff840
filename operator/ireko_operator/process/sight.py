"""What the watches have delivered so far, and whether that is everything.

In a quiet cluster nothing is delivered for hours, so silence proves nothing. Now and then the operator therefore asks
the API server for the versions of all objects and compares them with what its watches delivered:

* a version that the API server knew at one look and that has not been delivered by a later one makes a watch deaf;
* an object that is missing at two looks in a row and was never reported deleted has gone while a watch was
  interrupted: kopf lists anew then and does not tell what is no longer there.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ireko_operator.kube.keys import Key, Kind


@dataclass(frozen=True, slots=True)
class Mark:
    """One state of one object."""

    uid: str
    version: int


def mark_of(body: Mapping[str, Any]) -> tuple[Key, Mark]:
    """Which object a body is about and in which state."""
    metadata = body["metadata"]
    key = (metadata.get("namespace") or "", metadata["name"])
    return key, Mark(metadata.get("uid") or "", int(metadata["resourceVersion"]))


@dataclass(kw_only=True)
class _View:
    """What is known of one kind."""

    delivered: dict[Key, Mark] = field(default_factory=dict)
    overdue: dict[Key, tuple[Mark, float]] = field(default_factory=dict)
    """What the API server knew and since when it has been overdue."""
    missing: dict[Key, str] = field(default_factory=dict)
    """uids of what was delivered and was not there at the last look."""
    looked: bool = False
    heard: float | None = None
    """Unix time of the last event, or of the last look at which nothing was overdue."""


class Sight:
    """What was delivered, by kind; safe to be used by several threads."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._views: dict[Kind, _View] = {}
        self._phases: dict[Key, str] = {}

    def watch(self, kinds: frozenset[Kind]) -> None:
        """From now on these kinds are watched."""
        with self._lock:
            self._views = {kind: self._views.get(kind) or _View() for kind in Kind if kind in kinds}

    def deliver(self, kind: Kind, event: str | None, body: Mapping[str, Any]) -> None:
        """Take note of an event of a watch."""
        key, mark = mark_of(body)
        with self._lock:
            view = self._views.get(kind)
            if view is None:
                return
            view.heard = self._wall_clock()
            known = view.delivered.get(key)
            if event != "DELETED":
                if known is None or known.version < mark.version:
                    view.delivered[key] = mark
                    self._note_phase(kind, key, body)
            elif known is not None and known.uid == mark.uid:
                self._drop(kind, view, key)

    def look(self, kind: Kind, listed: Mapping[Key, Mark]) -> list[tuple[Key, str]]:
        """Compare with what the API server has; returns key and uid of what has gone without a word."""
        with self._lock:
            view = self._views.get(kind)
            if view is None:
                return []
            now = self._clock()
            view.overdue = {key: due for key, due in view.overdue.items() if not _has(view, key, due[0])}
            for key in [key for key in view.overdue if key not in listed]:
                del view.overdue[key]  # it has gone since, and that is told separately
            for key, mark in listed.items():
                if not _has(view, key, mark):
                    view.overdue.setdefault(key, (mark, now))
            gone = {key: mark.uid for key, mark in view.delivered.items() if key not in listed}
            lost = [(key, uid) for key, uid in gone.items() if view.missing.get(key) == uid]
            for key, _ in lost:
                self._drop(kind, view, key)
            view.missing = {key: uid for key, uid in gone.items() if key in view.delivered}
            view.looked = True
            if not view.overdue:
                view.heard = self._wall_clock()
            return lost

    def synced(self) -> bool:
        """Whether everything that the API server had at the first look was delivered."""
        with self._lock:
            return bool(self._views) and all(
                view.looked and all(_has(view, key, mark) for key, (mark, _) in view.overdue.items())
                for view in self._views.values()
            )

    def deaf(self) -> dict[Kind, float]:
        """Seconds for which the oldest undelivered change has been known, by kind."""
        with self._lock:
            now = self._clock()
            return {
                kind: max(
                    (now - since for key, (mark, since) in view.overdue.items() if not _has(view, key, mark)),
                    default=0.0,
                )
                for kind, view in self._views.items()
            }

    def heard(self) -> dict[Kind, float | None]:
        """When each watched kind's watch was last known to deliver; Unix time."""
        with self._lock:
            return {kind: view.heard for kind, view in self._views.items()}

    def phases(self) -> Counter[str]:
        """How many runs there are in each phase."""
        with self._lock:
            return Counter(self._phases.values())

    def uid(self, kind: Kind, key: Key) -> str | None:
        """The uid of a delivered object."""
        with self._lock:
            view = self._views.get(kind)
            known = view.delivered.get(key) if view is not None else None
            return known.uid if known is not None else None

    def _note_phase(self, kind: Kind, key: Key, body: Mapping[str, Any]) -> None:
        if kind is Kind.RUNS:
            self._phases[key] = (body.get("status") or {}).get("phase") or "Pending"

    def _drop(self, kind: Kind, view: _View, key: Key) -> None:
        view.delivered.pop(key, None)
        if kind is Kind.RUNS:
            self._phases.pop(key, None)


def _has(view: _View, key: Key, mark: Mark) -> bool:
    """Whether that state, or a later one, was delivered."""
    known = view.delivered.get(key)
    return known is not None and known.version >= mark.version
