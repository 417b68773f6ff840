"""`ireko operator`: the parts put together, and the life of the process.

    main thread      signals, and the order in which everything begins and ends
    lease            campaigns for the Lease, renews it
    watches          kopf's event loop: fills the cache, wakes runs
    prober           what the watches cannot tell
    reconcile-0..n   bring runs forward
    tracking-poll    asks MLflow how far the active runs are
    http             /healthz, /readyz, /metrics

Without the Lease only `lease` and `http` run. Work begins once everything that exists has been seen: a decision that
is made before would take what has not been listed yet for missing.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from ireko_operator.kube.cache import Cache
from ireko_operator.kube.client import KubeClient, connect
from ireko_operator.kube.keys import Key, Kind
from ireko_operator.launch.platform import Platform
from ireko_operator.process import logs
from ireko_operator.process.checks import check_start
from ireko_operator.process.health import Vitals, find_ailments, find_hindrances
from ireko_operator.process.inquiry import Inquiry
from ireko_operator.process.lease import Elector, Fence, KubeStore
from ireko_operator.process.metrics import Metrics, State
from ireko_operator.process.prober import Prober
from ireko_operator.process.queue import WorkQueue
from ireko_operator.process.server import HealthServer
from ireko_operator.process.settings import OperatorSettings
from ireko_operator.process.sight import Sight, mark_of
from ireko_operator.process.watches import Watches
from ireko_operator.process.workers import Workers
from ireko_operator.reconcile.cluster import Surroundings, cluster_reconciler
from ireko_operator.tracking_poll import TrackingPoll

logger = logging.getLogger(__name__)

EXIT_STOPPED = 0
EXIT_LEASE_LOST = 1

_RESYNC_SECONDS = 1800.0
"""Every run is looked at once in this time though nothing happened: what an event forgot, time remembers."""
_LEASE_REQUEST_SECONDS = 3.0
_THREAD_SECONDS = 5.0
"""A thread that is told to end may be in the middle of a request."""
_TICK = 0.25


def run_operator(settings: OperatorSettings) -> int:
    """Run until the process is asked to stop or loses the Lease; the exit status."""
    logs.configure(form=settings.log_format, level=settings.log_level)
    inquiry = Inquiry(kubeconfig=settings.kubeconfig)
    check_start(inquiry, settings)
    status = Operator(settings, inquiry=inquiry).run()
    if status == EXIT_LEASE_LOST:
        # Not a moment longer: somebody else may work soon, and a pass that hangs must not outlive the right to write.
        logging.shutdown()
        os._exit(status)
    return status


class Operator:
    """One process; `run` is called once, in the main thread."""

    def __init__(self, settings: OperatorSettings, *, inquiry: Inquiry) -> None:
        self._settings = settings
        self._stop, self._halt = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._synced = False
        self._next_resync = 0.0
        self._metrics = Metrics()
        self._queue: WorkQueue[Key] = WorkQueue()
        self._sight = Sight()
        self._cache = Cache()
        self._fence = Fence()
        self._elector = self._make_elector() if settings.leader_elect else None
        api = connect(kubeconfig=settings.kubeconfig, connections=settings.workers + 1)
        self._poll = TrackingPoll(
            wake=self._queue.add, interval=settings.progress_interval, telemetry=self._metrics
        )
        self._reconciler = cluster_reconciler(
            Surroundings(
                client=KubeClient(api=api, fence=self._fence, telemetry=self._metrics),
                cache=self._cache,
                poll=self._poll,
                platform=_platform(settings),
                telemetry=self._metrics,
                progress_interval=settings.progress_interval,
            )
        )
        self._workers = Workers(
            queue=self._queue,
            reconciler=self._reconciler,
            count=settings.workers,
            telemetry=self._metrics,
            about=self._about,
        )
        self._watches = Watches(
            cluster=api.configuration,
            namespaces=settings.namespaces,
            on_event=self._on_event,
            on_restart=self._metrics.watch_restarts.inc,
        )
        self._prober = Prober(
            inquiry=inquiry,
            namespaces=settings.namespaces,
            sight=self._sight,
            watch=self._watches.watch,
            gone=self._on_gone,
        )
        self._metrics.registry.register(
            State(
                depth=self._queue.depth,
                phases=self._sight.phases,
                watched=self._sight.heard,
                leading=lambda: self._leading,
            )
        )
        self._server = HealthServer(
            host=settings.host,
            port=settings.port,
            registry=self._metrics.registry,
            healthy=lambda: find_ailments(self._vitals()),
            ready=lambda: find_hindrances(self._vitals()),
        )

    def run(self) -> int:
        """Work until SIGTERM or SIGINT, or until the Lease is lost; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._server.start()
        logger.info("Listening on %s:%d for probes and scrapes.", self._settings.host, self._server.port)
        self._campaign()
        if self._until(lambda: self._leading):
            self._threads.append(self._watches.start())
            self._spawn("prober", lambda: self._prober.run(self._stop))
            if self._until(self._sight.synced):
                self._work()
        if self._elector is not None and self._lost:
            self._queue.close()
            logger.error("The Lease is lost (%s): this operator ends.", self._elector.why_lost)
            return EXIT_LEASE_LOST
        self._wind_up()
        return EXIT_STOPPED

    def _campaign(self) -> None:
        elector = self._elector
        if elector is None:
            self._fence.open_until(float("inf"))
        else:
            logger.info("Campaigning for the Lease as %s.", self._settings.identity)
            self._spawn("lease", lambda: elector.run(self._halt))

    def _work(self) -> None:
        self._synced = True
        logger.info("Everything that exists has been seen: %d runs.", len(self._cache.runs()))
        self._next_resync = time.monotonic() + _RESYNC_SECONDS
        gc.collect()
        gc.freeze()  # what is loaded by now stays for good: half a second of every full collection
        self._poll.start()
        self._workers.start()
        self._until(lambda: False)

    def _wind_up(self) -> None:
        """End what is under way, and let a successor begin."""
        logger.info("Stopping.")
        self._queue.close()
        ended = self._workers.join(timeout=self._settings.stop_grace)
        self._reconciler.close()
        if self._synced:
            self._poll.close()
        self._watches.stop(timeout=_THREAD_SECONDS)
        self._halt.set()
        for thread in self._threads:
            thread.join(_THREAD_SECONDS)
        if not ended:
            logger.warning(
                "A pass did not end within %.0f s; the Lease is left to expire.", self._settings.stop_grace
            )
        elif self._elector is not None:
            self._elector.release()
        self._server.stop()

    def _until(self, reached: Callable[[], bool]) -> bool:
        """Wait; False when the process is to end instead."""
        while not self._stop.is_set() and not self._lost:
            if reached():
                return True
            self._resync()
            self._stop.wait(_TICK)
        return False

    def _resync(self) -> None:
        now = time.monotonic()
        if self._synced and now >= self._next_resync:
            self._next_resync = now + _RESYNC_SECONDS
            for key in self._cache.runs():
                self._queue.add(key, delay=random.uniform(0.0, _RESYNC_SECONDS))

    @property
    def _leading(self) -> bool:
        return self._fence() if self._elector is None else self._elector.leading

    @property
    def _lost(self) -> bool:
        return self._elector is not None and self._elector.elected.is_set() and not self._elector.leading

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _on_event(self, kind: Kind, event: str | None, body: Mapping[str, Any]) -> None:
        try:
            woken = self._cache.observe(kind, event, body)
        except Exception:  # an object that we cannot read must not hide the others from us
            self._metrics.watch_error(kind)
            logger.exception("An event of %s %s was not understood.", kind.value, mark_of(body)[0])
            woken = set()
        self._sight.deliver(kind, event, body)
        # A run that nothing was said about yet waits for its start; the others wait for what is said about them.
        self._queue.add_all(woken, first=kind is Kind.RUNS and "status" not in body)

    def _on_gone(self, kind: Kind, key: Key, uid: str) -> None:
        namespace, name = key
        body = {"metadata": {"namespace": namespace, "name": name, "uid": uid}}
        self._queue.add_all(self._cache.observe(kind, "DELETED", body))

    def _about(self, key: Key) -> AbstractContextManager[None]:
        return logs.about(key, uid=self._sight.uid(Kind.RUNS, key))

    def _vitals(self) -> Vitals:
        elector, leading = self._elector, self._leading
        return Vitals(
            leading=leading,
            stopping=self._stop.is_set(),
            dead=tuple(thread.name for thread in self._threads if not thread.is_alive()),
            synced=self._synced,
            watches_down=self._watches.down_for if leading else 0.0,
            deaf=self._sight.deaf(),
            depth=self._queue.depth(),
            since_last_finish=self._queue.seconds_since_last_finish() if self._synced else 0.0,
            lease_reachable=elector is None or elector.reachable,
        )

    def _make_elector(self) -> Elector:
        settings = self._settings
        api = connect(kubeconfig=settings.kubeconfig, connections=1)
        store = KubeStore(
            client=KubeClient(api=api, seconds=_LEASE_REQUEST_SECONDS),
            namespace=settings.lease_namespace,
            name=settings.lease_name,
        )
        return Elector(store=store, identity=settings.identity, fence=self._fence)

    def _spawn(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


def _platform(settings: OperatorSettings) -> Platform:
    return Platform(
        trainer_image=settings.trainer_image,
        tracking_uri=settings.tracking_uri,
        allowed_tracking_uris=settings.allowed_tracking_uris,
        exceptions=settings.exceptions,
        pod_defaults=settings.pod_defaults,
        submission_mode=settings.submission_mode,
    )
