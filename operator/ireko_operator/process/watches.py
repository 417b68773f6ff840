"""The watches: kopf, embedded in a thread and an event loop of its own; they wake the reconcile and do nothing else.

kopf lists and watches, reconnects, and pages through long lists. Of its handlers only `on.event` is used: those leave
no trace on the objects. It is told which kinds exist instead of finding out by watching CustomResourceDefinitions,
for which an operator of a few namespaces has no right; when a kind appears, kopf is started anew with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kopf
from kubernetes.client import Configuration

from ireko_operator.kube.keys import FINALIZER, Kind
from ireko_operator.process.watched import WATCHED, Served

logger = logging.getLogger(__name__)

OnEvent = Callable[[Kind, str | None, Mapping[str, Any]], None]
"""Told of every event in the event loop, so it must be quick; the type is None for an object of an initial list."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class Watches:
    """kopf in a thread, started again whenever it ends before its time."""

    def __init__(
        self,
        *,
        cluster: Configuration,
        namespaces: Sequence[str],
        on_event: OnEvent,
        on_restart: Callable[[], None],
    ) -> None:
        """Without `namespaces`, the whole cluster is watched."""
        self._cluster = cluster
        self._namespaces = tuple(namespaces)
        self._on_event = on_event
        self._on_restart = on_restart
        self._lock = threading.Lock()
        self._served: Served = {}
        self._end_round: Callable[[], None] | None = None
        self._changed = threading.Event()
        self._stopping = False
        self._down_since: float | None = None
        self._thread = threading.Thread(target=self._supervise, name="watches", daemon=True)

    def start(self) -> threading.Thread:
        """Begin, in the thread returned; nothing is watched before `watch` names kinds."""
        self._down_since = time.monotonic()
        self._thread.start()
        return self._thread

    def watch(self, served: Served) -> None:
        """Watch these kinds from now on."""
        with self._lock:
            if served != self._served:
                self._served = served
                self._interrupt()

    def stop(self, *, timeout: float) -> None:
        """End all watches; returns when they have ended, or after `timeout` seconds."""
        with self._lock:
            self._stopping = True
            self._interrupt()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def down_for(self) -> float:
        """Seconds since the watches ended; 0 while they run."""
        since = self._down_since
        return time.monotonic() - since if since is not None else 0.0

    def _interrupt(self) -> None:
        self._changed.set()
        if self._end_round is not None:
            self._end_round()

    def _supervise(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._lock:
                if self._stopping:
                    return
                served = self._served
                self._changed.clear()
            if not served:
                self._changed.wait()
                continue
            began = time.monotonic()
            try:
                asyncio.run(self._watch(served))
            except (
                Exception
            ) as error:  # kopf gives up on whatever it did not expect; nothing else stops the watching
                logger.warning("The watches ended (%s: %s).", type(error).__name__, error)
            self._down_since = self._down_since or time.monotonic()
            if self._changed.is_set():
                continue
            pause = (
                _FIRST_PAUSE if time.monotonic() - began > _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)
            )
            logger.warning("The watches are started anew in %.0f s.", pause)
            self._on_restart()
            self._changed.wait(pause)

    async def _watch(self, served: Served) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            if self._changed.is_set():
                return

            def end() -> None:
                loop.call_soon_threadsafe(stop.set)

            self._end_round = end
        try:
            await kopf.operator(
                registry=self._registry(served),
                settings=_settings(served),
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=stop,
            )
        finally:
            with self._lock:
                self._end_round = None

    def _registry(self, served: Served) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return _connection(self._cluster)

        @kopf.on.startup(registry=registry)
        async def started(**_: Any) -> None:
            self._down_since = None

        for kind, resource in served.items():
            kopf.on.event(
                resource.group, resource.version, resource.plural, registry=registry, id=kind.value
            )(self._handler(kind))
        return registry

    def _handler(self, kind: Kind) -> Callable[..., Any]:
        async def handle(event: Mapping[str, Any], **_: Any) -> None:
            self._on_event(kind, event["type"], event["object"])

        return handle


class _NoDiffs(kopf.DiffBaseStorage):
    """Nothing is compared with what was handled last: without this kopf copies every object of every event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is ever written onto an object."""


def _settings(served: Served) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    for kind, resource in served.items():
        if WATCHED[kind].selector:
            place = (resource.group, resource.version, resource.plural)
            settings.watching.label_selectors[place] = WATCHED[kind].selector
    settings.networking.request_timeout = 30
    settings.networking.enforce_retry_after = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.finalizer = f"{FINALIZER}-unused"
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.process.ultimate_exiting_timeout = None  # it would kill this whole process
    return settings


def _connection(cluster: Configuration) -> kopf.ConnectionInfo:
    """The cluster in kopf's terms; asked for again when the API server no longer takes the token."""
    header = cluster.get_api_key_with_prefix("BearerToken") or cluster.get_api_key_with_prefix(
        "authorization"
    )
    scheme, _, token = (header or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=cluster.host,
        ca_path=cluster.ssl_ca_cert,
        insecure=not cluster.verify_ssl,
        username=cluster.username or None,
        password=cluster.password or None,
        scheme=scheme or None,
        token=token or None,
        certificate_path=cluster.cert_file,
        private_key_path=cluster.key_file,
        proxy_url=cluster.proxy,
    )
