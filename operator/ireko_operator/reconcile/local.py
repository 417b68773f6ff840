"""The reconcile of `ireko run`: one run, polled until nothing is left to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from ireko_api.handoff import RunRequest
from ireko_api.status import CompressionRunStatus
from ireko_operator.errors import TrackingError
from ireko_operator.reconcile.act import act
from ireko_operator.reconcile.observe import Subject, Tracked, lost, observe
from ireko_operator.reconcile.plan import plan
from ireko_operator.reconcile.state import Action, Observed, Outage, StartAttempt, Stop

POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run stands when nothing is left to do."""

    status: CompressionRunStatus
    observed: Observed


@dataclass(kw_only=True)
class LocalReconcile:
    """Observe, decide, act and report, once a second."""

    subject: Subject
    request: Callable[[int], RunRequest]
    registering: AbstractContextManager[object]
    stop: Callable[[], Stop]
    """How much somebody wants the run to stop, asked in every pass."""
    report: Callable[[CompressionRunStatus, Observed], None]
    """Told of every pass."""
    save: Callable[[CompressionRunStatus], None]
    """Told of every change."""
    status: CompressionRunStatus
    """The status as last saved."""
    poll_seconds: float = POLL_SECONDS

    _tracked: Tracked = field(default_factory=Tracked)
    _attempt: int | None = None
    _unregistered: Outage | None = None
    """What keeps the last registration from being done."""

    def run(self) -> Ended:
        """Bring the run to an end and say which."""
        while True:
            now = datetime.now(UTC)
            observed, self._tracked = observe(
                self.subject,
                attempt_number=self._attempt,
                stop=self.stop(),
                last=self._tracked,
                previous=self.status,
                now=now,
            )
            if observed.outage is None:
                observed = replace(observed, outage=self._unregistered)
            decision = plan(observed, now=now)
            for action in decision.actions:
                self._perform(action, now)
            if decision.status != self.status:
                self.save(decision.status)
                self.status = decision.status
            self.report(decision.status, observed)
            if decision.done:
                return Ended(status=decision.status, observed=observed)
            if not decision.actions or self._unregistered is not None:
                time.sleep(self.poll_seconds)

    def _perform(self, action: Action, now: datetime) -> None:
        if isinstance(action, StartAttempt):
            self._attempt = action.number
        try:
            act(action, subject=self.subject, request=self.request, registering=self.registering)
        except TrackingError as error:
            self._unregistered = lost(self._unregistered, error, now=now)
        else:
            self._unregistered = None
