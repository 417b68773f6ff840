"""What happened to a run, for whoever types `kubectl describe` or `kubectl events`.

Conditions say how things stand, events that they changed. They follow from two statuses alone, so what is
told is exactly what was written, and an event's name follows from what it says, so it is told once.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ireko_api import spec
from ireko_api.reasons import ConditionType, Reason
from ireko_api.status import CompressionRunStatus, Condition
from ireko_operator.kube.client import AlreadyExistsError, FencedError, KubeClient, KubeError
from ireko_operator.kube.keys import EVENTS, MANAGER
from ireko_operator.kube.objects import Meta

ATTEMPT_STARTED = "AttemptStarted"
CONTROLLER = "ireko.dev/operator"

_LONGEST_NOTE = 1024
_TOLD_WHEN_TRUE = (ConditionType.TRAINED, ConditionType.SUCCEEDED)
_NO_WARNING = (Reason.SUSPENDED, Reason.QUEUE_PENDING, Reason.INTERRUPTED)
_NOTHING_TO_DO = Reason.ACCEPTED.remedy

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Note:
    """One thing that happened."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(before: CompressionRunStatus, after: CompressionRunStatus) -> tuple[Note, ...]:
    """What happened between two statuses of a run, each message once."""
    told: dict[str, Note] = {}
    for note in (*_started(before, after), *_conditions(before, after)):
        told.setdefault(note.message, note)
    return tuple(told.values())


def _started(before: CompressionRunStatus, after: CompressionRunStatus) -> Iterator[Note]:
    known = {attempt.number for attempt in before.attempts}
    for attempt in after.attempts:
        if attempt.number not in known:
            job = f" as RayJob {attempt.ray_job}" if attempt.ray_job else ""
            message = f"Attempt {attempt.number} was started{job}."
            yield Note(type="Normal", reason=ATTEMPT_STARTED, message=message)


def _conditions(before: CompressionRunStatus, after: CompressionRunStatus) -> Iterator[Note]:
    earlier = {condition.type: (condition.status, condition.reason) for condition in before.conditions}
    for condition in after.conditions:
        if earlier.get(condition.type) != (condition.status, condition.reason):
            yield from _condition(condition)


def _condition(condition: Condition) -> Iterator[Note]:
    reason = Reason(condition.reason)
    message = condition.message or reason.sentence
    if condition.status == "True":
        if condition.type in _TOLD_WHEN_TRUE:
            yield Note(type="Normal", reason=reason, message=message)
    elif reason.remedy != _NOTHING_TO_DO:
        kind: Literal["Normal", "Warning"] = "Normal" if reason in _NO_WARNING else "Warning"
        yield Note(type=kind, reason=reason, message=message)


class EventWriter:
    """Writes events about runs; what cannot be written is logged, since an event is no state."""

    def __init__(self, *, client: KubeClient, instance: str | None = None) -> None:
        self._client = client
        self._instance = (instance or socket.gethostname())[:128]

    def write(self, run: Meta, note: Note, *, now: datetime) -> None:
        """Say that `note` happened to the run."""
        said = f"{run.uid}\n{note.type}\n{note.reason}\n{note.message}"
        name = f"{run.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": run.namespace},
            "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "action": "Reconcile",
            "reason": note.reason,
            "type": note.type,
            "note": _cut(note.message),
            "regarding": {
                "apiVersion": spec.API_VERSION,
                "kind": spec.KIND,
                "namespace": run.namespace,
                "name": run.name,
                "uid": run.uid,
            },
        }
        try:
            self._client.create(EVENTS, namespace=run.namespace, body=body, manager=MANAGER)
        except (AlreadyExistsError, FencedError):
            return
        except KubeError as error:
            log.warning("An event about %s/%s was not written: %s", run.namespace, run.name, error)


def _cut(text: str) -> str:
    """At most as many bytes as the API server takes."""
    encoded = text.encode()
    if len(encoded) <= _LONGEST_NOTE:
        return text
    return encoded[: _LONGEST_NOTE - 3].decode(errors="ignore") + "…"
