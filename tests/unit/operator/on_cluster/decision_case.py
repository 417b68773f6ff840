"""What a case of the table of decisions says, and the words that its cases are written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from cluster_runs import ago, record, status

from ireko_api.handoff import Failure, Family
from ireko_api.reasons import Reason
from ireko_operator.launch import Memory, Trouble, WorkloadView
from ireko_operator.reconcile.state import Action, Observed, Outage, StartAttempt

GIB = 2**30
MEMORY = Memory(worker=2 * GIB, head=4 * GIB)
AWAY = Outage(message="MLflow does not answer.", since=ago(600))
REFUSED = Outage(message="MLflow says no.", since=ago(600), refused=True)
DIVERGED = Failure(reason="Diverged", message="The loss became NaN.")
LOST = Failure(reason="WorkerLost", message="Workers died.", resumable=True)
SAVED = Failure(reason="Interrupted", message="The state is saved.", resumable=True)
PULL = Trouble(reason=Reason.IMAGE_PULL_FAILED, message="The image cannot be pulled.")
QUOTA = Trouble(reason=Reason.QUOTA_EXCEEDED, message="The quota is used up.")
STARTING = {"job_status": "", "deployment_status": "Initializing", "ready_pods": 0}
SUSPENDED = {"job_status": "", "deployment_status": "Suspended", "suspended": True, "live_pods": 0}
QUEUED = {**SUSPENDED, "deployment_status": ""}
PENDING = WorkloadView(state="Pending", reason="Pending", message="Waiting for quota.")
EVICTED = WorkloadView(state="Evicted", reason="Preempted", message="Preempted by another.")
ADMITTED = WorkloadView(state="Admitted")

FAMILY = cast("Family", "family")
"""Stands for the family of the fixture, which a case can only name."""


def start(number: int = 1, memory: Memory = MEMORY) -> StartAttempt:
    return StartAttempt(number=number, memory=memory)


@dataclass(frozen=True, kw_only=True)
class Case:
    seen: Observed
    phase: str
    reason: str
    """Of the status."""
    does: tuple[Action, ...] = ()
    about: tuple[str, str, str] | None = None
    """One condition: type, status, reason."""
    waits: bool | None = None
    """Whether it asks to be looked at again by itself; None: it does not matter."""


FINISHED = status(record(1, "Succeeded"), phase="Succeeded", finished_at=ago(100))
GIVEN_UP = status(record(1, "Failed", reason="Diverged"), phase="Failed", finished_at=ago(100))
