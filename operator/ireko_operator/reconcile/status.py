"""The status of a run from what is observed and concluded: computed anew in every pass, never patched.

Conditions are the truth and the phase is their summary. From the status before come only the times of
transitions, the earlier attempts and how long they held a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

from ireko_api.reasons import Reason
from ireko_api.status import (
    CompressionRunStatus,
    MemberStatus,
    MlflowStatus,
    Phase,
    ProgressStatus,
    TeacherStatus,
)
from ireko_operator.reconcile.conditions import conditions_of
from ireko_operator.reconcile.records import records_after
from ireko_operator.reconcile.state import DeleteAttempt, Observed, StartAttempt, SuspendJob
from ireko_operator.reconcile.verdict import Verdict

_ENDED: tuple[Phase, ...] = ("Succeeded", "Failed", "Interrupted")


def status_of(observed: Observed, verdict: Verdict, *, now: datetime) -> CompressionRunStatus:
    """The status after the actions of a pass."""
    family, tracked, previous = observed.family, observed.tracked, observed.previous
    attempts = records_after(observed, verdict, now=now)
    active_seconds, active_since = _activity(observed, verdict, now)
    return CompressionRunStatus(
        phase=verdict.phase,
        reason=Reason.COMPLETE if verdict.phase == "Succeeded" else verdict.reason,
        observed_generation=observed.run.metadata.generation,
        started_at=previous.started_at or (attempts[0].started_at if attempts else None),
        finished_at=_finished_at(previous, verdict.phase, now),
        active_seconds=active_seconds,
        active_since=active_since,
        conditions=conditions_of(observed, verdict, now=now),
        attempts=attempts,
        progress=_progress(observed),
        mlflow=MlflowStatus(tracking_uri=observed.tracking_uri, run_id=tracked.run_id) if tracked else None,
        teacher=TeacherStatus(
            parameters=family.teacher.parameters,
            size_bytes=family.teacher.size_bytes,
            metrics=_finite(family.teacher.metrics),
        )
        if family
        else None,
        members=_members(observed),
        registered=f"{len(observed.registrations)}/{len(observed.run.spec.device_targets)}",
        report=observed.report,
    )


def seconds_active(status: CompressionRunStatus, *, now: datetime) -> float:
    """How long the attempts of a run have held a cluster until now."""
    since = status.active_since
    return status.active_seconds + (max(0.0, (now - since).total_seconds()) if since is not None else 0.0)


def is_active(observed: Observed, verdict: Verdict) -> bool:
    """Whether an attempt holds a cluster, or asks for one outside of a queue, once the actions are taken."""
    if observed.cluster is None:
        return False
    attempt = observed.attempt
    for action in verdict.actions:
        match action:
            case StartAttempt():
                return observed.run.spec.compute.queue_name is None
            case SuspendJob(suspended=suspended):
                return not suspended
            case DeleteAttempt(number=number) if attempt is not None and number == attempt.number:
                return False
            case _:
                continue
    view = attempt.cluster if attempt is not None and attempt.alive else None
    return view is not None and not view.suspended and not view.deleting


def _activity(observed: Observed, verdict: Verdict, now: datetime) -> tuple[int, datetime | None]:
    previous = observed.previous
    if is_active(observed, verdict):
        return previous.active_seconds, previous.active_since or now
    return int(seconds_active(previous, now=now)), None


def _finished_at(previous: CompressionRunStatus, phase: Phase, now: datetime) -> datetime | None:
    if phase not in _ENDED:
        return None
    return previous.finished_at if previous.phase == phase and previous.finished_at else now


def _progress(observed: Observed) -> ProgressStatus | None:
    progress = observed.tracked.progress if observed.tracked else None
    if progress is None:
        return None
    return ProgressStatus(
        stage=progress.stage[:256],
        step=progress.step,
        total_steps=progress.total_steps,
        percent=progress.percent,
        eta_seconds=progress.eta_seconds,
    )


def _members(observed: Observed) -> tuple[MemberStatus, ...]:
    registered = {registration.target: registration for registration in observed.registrations}
    members = observed.family.members if observed.family else ()
    return tuple(
        MemberStatus(
            target=member.target,
            model_uri=registered[member.target].model_uri,
            version=str(registered[member.target].version),
            parameters=member.parameters,
            size_bytes=member.size_bytes,
            average_bits=member.average_bits,
            metrics=_finite(member.metrics),
        )
        for member in members
        if member.target in registered
    )


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and infinities, which JSON cannot say."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
