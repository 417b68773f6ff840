"""A run one of whose attempts lives: paused, queued, starting or at work, and when that has lasted too long."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from ireko_api.reasons import ConditionType, Reason
from ireko_operator.launch import Attempt, ClusterView
from ireko_operator.reconcile.attempt_ends import Ending, starts
from ireko_operator.reconcile.state import DeleteAttempt, Observed, SuspendJob
from ireko_operator.reconcile.status import seconds_active
from ireko_operator.reconcile.verdict import Verdict


def follow(observed: Observed, attempt: Attempt, view: ClusterView, *, now: datetime) -> Verdict | Ending:
    """Where the run stands; an `Ending` where the attempt is to be stopped for it."""
    if is_out_of_time(observed, now=now):
        verdict = out_of_time(observed)
        return replace(verdict, ending=_ended(attempt, verdict.reason, verdict.message))
    if observed.run.spec.suspend:
        return _pause(observed, attempt, view)
    if view.suspended:
        return _held(observed, attempt, view, now)
    if view.head_lost:
        return _ended(attempt, Reason.HEAD_LOST, "The pod that leads the Ray cluster was lost.")
    if starts(view):
        return _start(observed, attempt, view, now)
    return Verdict(
        phase="Running",
        reason=Reason.TRAINING,
        message=f"Attempt {attempt.number} of the trainer is at work.",
        requeue_after=_until_out_of_time(observed, now),
    )


# --- the deadline of the run ---


def is_out_of_time(observed: Observed, *, now: datetime) -> bool:
    """Whether the attempts have held a cluster for longer than the run allows."""
    remaining = _until_out_of_time(observed, now)
    return remaining is not None and remaining <= 0


def out_of_time(observed: Observed) -> Verdict:
    """The end of a run that took too long."""
    limit = observed.run.spec.compute.active_deadline_seconds
    return Verdict(
        phase="Failed",
        reason=Reason.DEADLINE_EXCEEDED,
        message=f"The run took longer than spec.compute.activeDeadlineSeconds, {limit} s.",
        summary=Reason.DEADLINE_EXCEEDED,
        done=True,
    )


def _until_out_of_time(observed: Observed, now: datetime) -> float | None:
    limit = observed.run.spec.compute.active_deadline_seconds
    return None if limit is None else limit - seconds_active(observed.previous, now=now)


# --- pauses and queues ---


def is_queued(observed: Observed, view: ClusterView | None) -> bool:
    """Whether Kueue decides when the RayJob runs, by the manifest or by its own defaults."""
    return observed.run.spec.compute.queue_name is not None or (
        view is not None and view.workload is not None
    )


def paused() -> Verdict:
    """The run is paused, or about to be."""
    return Verdict(
        phase="Suspended",
        reason=Reason.SUSPENDED,
        message="The run is paused and goes on from its last checkpoint once spec.suspend is false again.",
        about=ConditionType.ADMITTED,
    )


def queued(observed: Observed, number: int, view: ClusterView | None) -> Verdict:
    """The attempt waits in its queue."""
    workload = view.workload if view is not None else None
    name = observed.run.spec.compute.queue_name
    queue = f"the queue {name}" if name is not None else "its queue"
    evicted = workload is not None and workload.state == "Evicted"
    if workload is None:
        said = "; Kueue has not taken it up yet."
    else:
        reason = f" ({workload.reason})" if workload.reason else ""
        said = f"{reason}: {workload.message}" if workload.message else f"{reason}."
    what = f"Attempt {number} lost its place and waits" if evicted else f"Attempt {number} waits"
    return Verdict(
        phase="Pending",
        reason=Reason.PREEMPTED if evicted else Reason.QUEUE_PENDING,
        message=f"{what} in {queue}{said}",
        about=ConditionType.ADMITTED,
    )


def _pause(observed: Observed, attempt: Attempt, view: ClusterView) -> Verdict:
    if is_queued(observed, view):
        # `suspend` of its RayJob belongs to Kueue, which would take a paused job for one that may go on.
        ending = Ending(number=attempt.number, outcome="Interrupted", reason=Reason.SUSPENDED)
        return replace(paused(), ending=ending, actions=(DeleteAttempt(number=attempt.number),))
    actions = () if view.suspended else (SuspendJob(number=attempt.number, suspended=True),)
    return replace(paused(), actions=actions)


def _held(observed: Observed, attempt: Attempt, view: ClusterView, now: datetime) -> Verdict:
    if not is_queued(observed, view):
        return replace(
            starting(observed, attempt.number, now=now),
            actions=(SuspendJob(number=attempt.number, suspended=False),),
        )
    if view.workload is not None and view.workload.state == "Admitted":
        return starting(observed, attempt.number, now=now)
    return queued(observed, attempt.number, view)


# --- until the pods run ---


def starting(observed: Observed, number: int, *, now: datetime) -> Verdict:
    """The attempt's pods are on their way."""
    return Verdict(
        phase="Pending",
        reason=Reason.CLUSTER_STARTING,
        message=f"The pods of attempt {number} are being started.",
        about=ConditionType.CLUSTER_READY,
        truth="Unknown",
        requeue_after=_until_too_late(observed, now),
    )


def _start(observed: Observed, attempt: Attempt, view: ClusterView, now: datetime) -> Verdict | Ending:
    trouble = view.troubles[0] if view.troubles else None
    if _pending_for(observed, now) >= observed.run.spec.compute.pending_deadline_seconds:
        limit = observed.run.spec.compute.pending_deadline_seconds
        late = f"The pods did not run within spec.compute.pendingDeadlineSeconds, {limit} s."
        if trouble is None:
            return _ended(attempt, Reason.UNSCHEDULABLE, late)
        return _ended(attempt, trouble.reason, f"{late} {trouble.message}")
    verdict = starting(observed, attempt.number, now=now)
    if trouble is None:
        return verdict
    return replace(verdict, reason=trouble.reason, message=trouble.message, truth="False")


def _pending_for(observed: Observed, now: datetime) -> float:
    """Seconds since the attempt asks for a cluster: since its start, or since the last pause or queue."""
    since = observed.previous.active_since
    return (now - since).total_seconds() if since is not None else 0.0


def _until_too_late(observed: Observed, now: datetime) -> float:
    limits = [observed.run.spec.compute.pending_deadline_seconds - _pending_for(observed, now)]
    out_of_time = _until_out_of_time(observed, now)
    if out_of_time is not None:
        limits.append(out_of_time)
    return max(0.0, min(limits))


def _ended(attempt: Attempt, reason: Reason, message: str) -> Ending:
    return Ending(number=attempt.number, outcome="Failed", reason=reason, message=message)
