"""The one write of a pass: the run's status, when it changed, by server-side apply.

What a person or a program acts on is written at once. Progress and wording change all the time while a
thousand runs train, so they wait until the last such write of the run is an interval ago.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from ireko_api import spec
from ireko_api.status import CompressionRunStatus
from ireko_operator.kube.cache import Cache
from ireko_operator.kube.client import KubeClient
from ireko_operator.kube.events import EventWriter, transitions
from ireko_operator.kube.keys import RUNS, STATUS_MANAGER, Kind
from ireko_operator.kube.objects import RunObject, run_object
from ireko_operator.reconcile.memory import RunMemory, Written
from ireko_operator.telemetry import RunOutcome, Telemetry

_OUTCOMES: dict[str, RunOutcome] = {"Succeeded": "Succeeded", "Failed": "Failed"}

log = logging.getLogger(__name__)


def status_in(run: RunObject) -> CompressionRunStatus:
    """The status that a run has, or an empty one where it has none that can be read."""
    try:
        return CompressionRunStatus.model_validate_json(run.status)
    except ValidationError as error:
        # Somebody else wrote it; the next write puts it right.
        log.warning("The status of %s/%s is not one: %s", *run.meta.key, error.errors()[0]["msg"])
        return CompressionRunStatus()


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """What became of a status."""

    changed: bool = False
    later: float | None = None
    """Seconds until it may be written."""


class StatusWriter:
    """Writes statuses and tells of what they changed."""

    def __init__(
        self,
        *,
        client: KubeClient,
        cache: Cache,
        events: EventWriter,
        telemetry: Telemetry,
        interval: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._cache = cache
        self._events = events
        self._telemetry = telemetry
        self._interval = interval
        self._monotonic = monotonic

    def write(
        self, run: RunObject, status: CompressionRunStatus, *, memory: RunMemory, now: datetime
    ) -> Wrote:
        """Make `status` the run's, unless it is already; details may have to wait."""
        before = status_in(run)
        # As it will be read again: without fractions of seconds.
        wanted = CompressionRunStatus.model_validate_json(status.model_dump_json(by_alias=True))
        if wanted == before or memory.written == Written(sent=wanted, kept=run.status):
            return Wrote()
        if _essence(wanted) == _essence(before):
            wait = memory.detail_written + self._interval - self._monotonic()
            if wait > 0:
                return Wrote(later=wait)
            memory.detail_written = self._monotonic()
        self._send(run, wanted, memory)
        self._tell(run, before, wanted, now)
        return Wrote(changed=True)

    def _send(self, run: RunObject, wanted: CompressionRunStatus, memory: RunMemory) -> None:
        answer = self._client.apply(
            RUNS,
            namespace=run.meta.namespace,
            name=run.meta.name,
            subresource="status",
            manager=STATUS_MANAGER,
            body={
                "apiVersion": spec.API_VERSION,
                "kind": spec.KIND,
                "metadata": {
                    "name": run.meta.name,
                    "namespace": run.meta.namespace,
                    "uid": run.meta.uid,
                },
                "status": wanted.model_dump(mode="json", by_alias=True, exclude_none=True),
            },
        )
        memory.written = Written(sent=wanted, kept=run_object(answer).status)
        self._cache.learn(Kind.RUNS, answer)

    def _tell(
        self, run: RunObject, before: CompressionRunStatus, after: CompressionRunStatus, now: datetime
    ) -> None:
        for note in transitions(before, after):
            log.info("%s: %s", note.reason, note.message)
            self._events.write(run.meta, note, now=now)
        earlier = {attempt.number: attempt.outcome for attempt in before.attempts}
        for attempt in after.attempts:
            if attempt.number not in earlier:
                self._telemetry.attempt("Started")
            if attempt.outcome != "Running" and attempt.outcome != earlier.get(attempt.number):
                self._telemetry.attempt(attempt.outcome)
        if after.phase != before.phase and after.phase in _OUTCOMES:
            age = (now - run.meta.created).total_seconds() if run.meta.created else 0.0
            self._telemetry.run_finished(_OUTCOMES[after.phase], max(0.0, age))


def _essence(status: CompressionRunStatus) -> tuple[object, ...]:
    """What is not put off: everything but progress, messages and what goes with them."""
    return (
        status.phase,
        status.observed_generation,
        tuple((c.type, c.status, c.reason, c.observed_generation) for c in status.conditions),
        tuple((attempt.number, attempt.outcome) for attempt in status.attempts),
        tuple((member.target, member.version) for member in status.members),
        status.teacher is None,
    )
