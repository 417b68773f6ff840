"""How far every active run is, by one search per MLflow server and interval instead of one per run.

The trainer keeps its progress in a tag of its run in MLflow. A thousand runs that each ask for theirs would
keep a server busy; one search for the runs that are running answers for all of them. A reconcile reads the
latest answer from memory and is woken when it changed, so MLflow being slow or away delays no pass.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mlflow import MlflowClient

from ireko_operator import tracking
from ireko_operator.errors import TrackingError
from ireko_operator.kube.keys import Key
from ireko_operator.reconcile.state import Outage, TrackedRun
from ireko_operator.telemetry import NoTelemetry, Telemetry

INTERVAL_SECONDS = 15.0
_SERVERS_AT_ONCE = 4
_EXPERIMENTS_ARE_LOOKED_UP_EVERY = 20
"""Rounds after which names of experiments are resolved anew: one may be deleted and made again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A run to be looked for."""

    key: Key
    uid: str
    spec_digest: str
    tracking_uri: str
    experiment: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What MLflow last said of a run."""

    run: TrackedRun | None = None
    outage: Outage | None = None
    """Of the run's server."""


@dataclass(kw_only=True)
class _Server:
    """What is remembered of one tracking server between two rounds."""

    experiments: dict[str, str]
    rounds: int = 0
    outage: Outage | None = None


class TrackingPoll:
    """Follows runs and wakes those of which something new is known; safe to be used by several threads."""

    def __init__(
        self,
        *,
        wake: Callable[[Key], None],
        connect: Callable[[str], MlflowClient] = tracking.shared,
        interval: float = INTERVAL_SECONDS,
        telemetry: Telemetry | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.wake = wake
        """Has a run reconciled soon."""
        self._connect = connect
        self._interval = interval
        self._telemetry = telemetry or NoTelemetry()
        self._clock = clock
        self._lock = threading.Lock()
        self._followed: dict[str, Followed] = {}
        self._runs: dict[str, TrackedRun] = {}
        self._servers: dict[str, _Server] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, run: Followed) -> None:
        """Look for the run from the next round on."""
        with self._lock:
            self._followed[run.uid] = run

    def forget(self, uid: str) -> None:
        """Stop looking for the run."""
        with self._lock:
            self._followed.pop(uid, None)
            self._runs.pop(uid, None)

    def latest(self, uid: str) -> Seen:
        """What is known of a run; nothing before the first round that found it."""
        with self._lock:
            followed = self._followed.get(uid)
            server = self._servers.get(followed.tracking_uri) if followed is not None else None
            return Seen(run=self._runs.get(uid), outage=server.outage if server is not None else None)

    def start(self) -> None:
        """Poll in a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._loop, name="tracking-poll", daemon=True)
        self._thread.start()

    def close(self, *, seconds: float = 5.0) -> None:
        """Stop polling; a request under way is waited for that long."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=seconds)

    def poll(self) -> None:
        """One round: a search per server that some followed run is tracked by."""
        with self._lock:
            servers: dict[str, list[Followed]] = defaultdict(list)
            for run in self._followed.values():
                servers[run.tracking_uri].append(run)
        if not servers:
            return
        with ThreadPoolExecutor(
            max_workers=min(_SERVERS_AT_ONCE, len(servers)), thread_name_prefix="tracking-poll"
        ) as pool:
            list(pool.map(lambda uri: self._ask(uri, servers[uri]), servers))

    def _loop(self) -> None:
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self.poll()
            except Exception:
                # A thread that dies would stop the progress of every run; the next round may well succeed.
                log.exception("Asking MLflow for the progress of the active runs failed")
            self._stopping.wait(max(0.0, self._interval - (time.monotonic() - started)))

    def _ask(self, uri: str, runs: list[Followed]) -> None:
        server = self._servers.setdefault(uri, _Server(experiments={}))
        try:
            found = self._search(uri, server, runs)
        except TrackingError as error:
            self._telemetry.tracking("refused" if error.refused else "unreachable")
            self._away(server, runs, error)
            return
        self._telemetry.tracking("ok")
        self._answered(server, runs, found)

    def _search(self, uri: str, server: _Server, runs: list[Followed]) -> dict[tuple[str, str], TrackedRun]:
        client = self._connect(uri)
        if server.rounds % _EXPERIMENTS_ARE_LOOKED_UP_EVERY == 0:
            server.experiments.clear()
        server.rounds += 1
        for name in {run.experiment for run in runs} - server.experiments.keys():
            number = tracking.experiment_id(client, uri=uri, name=name)
            if number is not None:
                server.experiments[name] = number
        return tracking.running(
            client,
            uri=uri,
            experiments=sorted(set(server.experiments.values())),
            wanted={(run.uid, run.spec_digest) for run in runs},
        )

    def _away(self, server: _Server, runs: Iterable[Followed], error: TrackingError) -> None:
        with self._lock:
            known = server.outage
            server.outage = Outage(
                message=str(error),
                since=known.since if known is not None else self._clock(),
                refused=error.refused,
            )
        if known is None or replace(known, since=server.outage.since) != server.outage:
            self._wake_all(runs)

    def _answered(
        self, server: _Server, runs: list[Followed], found: dict[tuple[str, str], TrackedRun]
    ) -> None:
        with self._lock:
            back, server.outage = server.outage is not None, None
            changed = []
            for run in runs:
                tracked = found.get((run.uid, run.spec_digest))
                # A run that is no longer running is not found: what it last said stands until it is forgotten.
                if tracked is not None and run.uid in self._followed and tracked != self._runs.get(run.uid):
                    self._runs[run.uid] = tracked
                    changed.append(run)
        self._wake_all(runs if back else changed)

    def _wake_all(self, runs: Iterable[Followed]) -> None:
        for run in runs:
            self.wake(run.key)
