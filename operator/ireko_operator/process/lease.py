"""Which of several operators works: the one whose name a Lease holds.

The holder renews every 2 s. Others take the Lease over once it has not changed for 15 s *by their own clock*: clocks
of different machines are never compared. The holder stops writing 10 s after it sent its last successful renewal, so
there are 5 s between its last write and anybody else's first. That moment is kept by the fence, which every write
asks: it closes by the clock alone, even where the thread that renews hangs or the machine was asleep.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from ireko_operator.kube.client import AlreadyExistsError, ConflictError, KubeClient, KubeError, NotFoundError
from ireko_operator.kube.keys import MANAGER, Resource

logger = logging.getLogger(__name__)

LEASES = Resource(group="coordination.k8s.io", version="v1", plural="leases")

_NOT_RENEWED = "it could not be renewed in time"

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def seconds() -> float:
    """A clock that never runs backwards and goes on while the machine sleeps, as other machines' clocks do."""
    return time.clock_gettime(_BOOT_CLOCK)


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds; those of Kubernetes' own components."""

    duration: float = 15.0
    """After which others may take a Lease that was not renewed."""
    deadline: float = 10.0
    """After which a holder that could not renew stops writing."""
    retry: float = 2.0
    """Between two looks at the Lease."""


class Fence:
    """Whether this process may write: `fence()` is asked before every write."""

    def __init__(self, *, clock: Callable[[], float] = seconds) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: float | None = None
        self._closed = False

    def __call__(self) -> bool:
        """Whether a write may be sent now."""
        return self.remaining() > 0.0

    def remaining(self) -> float:
        """Seconds for which writes may be sent, if nothing happens."""
        with self._lock:
            if self._closed or self._until is None:
                return 0.0
            return max(0.0, self._until - self._clock())

    def open_until(self, until: float) -> bool:
        """Allow writes until that time; whether they are. A fence that has closed stays closed."""
        with self._lock:
            now = self._clock()
            if self._until is not None and now >= self._until:
                self._closed = True
            if self._closed or now >= until:
                return False
            self._until = until
            return True

    def close(self) -> None:
        """Allow no write any more."""
        with self._lock:
            self._closed = True


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a Lease says."""

    holder: str
    """Empty when it was given back."""
    duration: float
    acquired: str = ""
    transitions: int = 0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A state of the Lease and when, by our own clock, it was first seen."""

    record: Record
    version: str
    at: float


Move = Literal["create", "take", "wait"]


def decide(seen: Seen | None, *, now: float) -> Move:
    """What somebody who is not the holder does about the Lease."""
    if seen is None:
        return "create"
    if not seen.record.holder or now - seen.at >= seen.record.duration:
        return "take"
    return "wait"


class Store(Protocol):
    """Where the Lease is. Every method raises `KubeError` when it is not known to have worked."""

    def read(self) -> tuple[Record, str] | None:
        """The record and its version; None where there is no Lease."""

    def create(self, record: Record) -> str:
        """The version of the new Lease; `AlreadyExistsError` when somebody was quicker."""

    def replace(self, record: Record, version: str) -> str:
        """The new version; `ConflictError` when `version` is not the current one."""


class Elector:
    """Campaigns for the Lease and, once it has it, keeps it; gives it up for good when it cannot."""

    def __init__(
        self,
        *,
        store: Store,
        identity: str,
        fence: Fence,
        times: Times | None = None,
        clock: Callable[[], float] = seconds,
    ) -> None:
        self._store = store
        self._identity = identity
        self._fence = fence
        self._times = times or Times()
        self._clock = clock
        self._seen: Seen | None = None
        self._unreachable = False
        self.elected = threading.Event()
        """Set once this process is the leader, for good."""
        self.lost = threading.Event()
        """Set once this process was the leader and is not any more, for good."""
        self.why_lost = _NOT_RENEWED

    @property
    def leading(self) -> bool:
        """Whether this process is the leader now."""
        return self.elected.is_set() and not self.lost.is_set() and self._fence()

    @property
    def leader(self) -> str:
        """Who holds the Lease as far as is known; empty when nobody does."""
        seen = self._seen
        return seen.record.holder if seen is not None else ""

    @property
    def reachable(self) -> bool:
        """Whether the last look at the Lease succeeded."""
        return not self._unreachable

    def run(self, stop: threading.Event) -> None:
        """Campaign and renew until the Lease is lost or `stop` is set."""
        while not stop.is_set() and not self.lost.is_set():
            self.step()
            stop.wait(self._times.retry)

    def step(self) -> None:
        """One look at the Lease and what follows from it."""
        try:
            if self.elected.is_set():
                self._renew()
            else:
                self._campaign()
        except KubeError as error:
            if not self._unreachable:
                logger.warning("The Lease could not be read or written: %s", error)
            self._unreachable = True
        else:
            self._unreachable = False
        if self.elected.is_set() and not self.lost.is_set() and not self._fence():
            self._give_up(_NOT_RENEWED)

    def release(self) -> None:
        """Give the Lease back, so that a successor need not wait. Call it when nothing can write any more."""
        held = self._seen if self.leading else None
        self._fence.close()
        if held is None:
            return
        try:
            self._store.replace(replace(held.record, holder="", duration=1.0), held.version)
        except KubeError as error:
            logger.warning("The Lease could not be given back; it expires by itself: %s", error)

    def _campaign(self) -> None:
        self._look()
        seen, started = self._seen, self._clock()
        move = decide(seen, now=started)
        if move == "wait":
            return
        record = Record(
            holder=self._identity,
            duration=self._times.duration,
            acquired=_timestamp(),
            transitions=seen.record.transitions + 1 if seen is not None else 0,
        )
        try:
            version = (
                self._store.create(record) if seen is None else self._store.replace(record, seen.version)
            )
        except (AlreadyExistsError, ConflictError):
            return  # somebody was quicker
        self._held(record, version, started)
        if self._fence.open_until(started + self._times.deadline):
            logger.info("This operator leads now.")
            self.elected.set()

    def _renew(self) -> None:
        held = self._seen
        assert held is not None  # what `elected` means
        started = self._clock()
        try:
            version = self._store.replace(held.record, held.version)
        except (ConflictError, NotFoundError):
            self._take_stock()
            return
        self._held(held.record, version, started)
        self._fence.open_until(started + self._times.deadline)

    def _take_stock(self) -> None:
        """The Lease changed under the leader: by an answer to its own renewal that got lost, or by somebody else."""
        self._look()
        seen = self._seen
        if seen is None or seen.record.holder != self._identity:
            self._give_up(f"{seen.record.holder or 'nobody'} holds it" if seen else "it was deleted")

    def _look(self) -> None:
        found = self._store.read()
        if found is None:
            self._seen = None
        elif self._seen is None or self._seen.version != found[1]:
            self._seen = Seen(record=found[0], version=found[1], at=self._clock())

    def _held(self, record: Record, version: str, at: float) -> None:
        self._seen = Seen(record=record, version=version, at=at)

    def _give_up(self, why: str) -> None:
        self.why_lost = why
        self._fence.close()
        self.lost.set()


class KubeStore:
    """The Lease as an object of the API server."""

    def __init__(self, *, client: KubeClient, namespace: str, name: str) -> None:
        """`client` must not be fenced: taking the Lease is what opens the fence."""
        self._client = client
        self._namespace = namespace
        self._name = name

    def read(self) -> tuple[Record, str] | None:
        """The record and its version; None where there is no Lease."""
        try:
            body = self._client.get(LEASES, namespace=self._namespace, name=self._name)
        except NotFoundError:
            return None
        spec = body.get("spec") or {}
        record = Record(
            holder=spec.get("holderIdentity") or "",
            duration=float(spec.get("leaseDurationSeconds") or 0),
            acquired=spec.get("acquireTime") or "",
            transitions=spec.get("leaseTransitions") or 0,
        )
        return record, body["metadata"]["resourceVersion"]

    def create(self, record: Record) -> str:
        """The version of the new Lease; `AlreadyExistsError` when somebody was quicker."""
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": _spec(record),
        }
        made = self._client.create(LEASES, namespace=self._namespace, body=body, manager=MANAGER)
        version: str = made["metadata"]["resourceVersion"]
        return version

    def replace(self, record: Record, version: str) -> str:
        """The new version; `ConflictError` when `version` is not the current one."""
        body = {"metadata": {"resourceVersion": version}, "spec": _spec(record)}
        made = self._client.merge(
            LEASES, namespace=self._namespace, name=self._name, body=body, manager=MANAGER
        )
        new: str = made["metadata"]["resourceVersion"]
        return new


def _spec(record: Record) -> dict[str, Any]:
    return {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": round(record.duration),
        "acquireTime": record.acquired or None,
        "renewTime": _timestamp(),
        "leaseTransitions": record.transitions,
    }


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
