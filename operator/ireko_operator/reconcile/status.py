"""The status of a run from what is observed and decided: computed anew in every pass, never patched.

Conditions are the truth and the phase is their summary. Only the times of transitions and the earlier
attempts come from the status before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from ireko_api.reasons import ConditionType, Reason
from ireko_api.status import (
    MAX_ATTEMPTS,
    Attempt,
    CompressionRunStatus,
    Condition,
    MemberStatus,
    MlflowStatus,
    Outcome,
    Phase,
    ProgressStatus,
    TeacherStatus,
)
from ireko_operator.reconcile.state import Observed

Truth = Literal["True", "False", "Unknown"]
_SUMMARY: dict[Phase, tuple[Truth, Reason]] = {
    "Pending": ("Unknown", Reason.WAITING),
    "Running": ("Unknown", Reason.IN_PROGRESS),
    "Succeeded": ("True", Reason.COMPLETE),
    "Failed": ("False", Reason.FAILED),
    "Interrupted": ("False", Reason.INTERRUPTED),
}


def status_of(
    observed: Observed, *, phase: Phase, reason: Reason, message: str, starting: int | None, now: datetime
) -> CompressionRunStatus:
    """The status after the actions of a pass; `starting` is the attempt that is being started."""
    family, tracked = observed.family, observed.tracked
    return CompressionRunStatus(
        phase=phase,
        observed_generation=observed.run.metadata.generation,
        conditions=_conditions(observed, phase=phase, reason=reason, message=message, now=now),
        attempts=_attempts(observed, phase=phase, message=message, starting=starting, now=now),
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
        report=observed.report,
    )


def _conditions(
    observed: Observed, *, phase: Phase, reason: Reason, message: str, now: datetime
) -> tuple[Condition, ...]:
    before = {condition.type: condition for condition in observed.previous.conditions}
    summary, summary_reason = _SUMMARY[phase]
    family = observed.family
    complete = family is not None and len(observed.registrations) == len(family.members)

    def condition(kind: ConditionType, truth: Truth, why: Reason, sentence: str = "") -> Condition:
        earlier = before.get(kind)
        since = earlier.last_transition_time if earlier is not None and earlier.status == truth else now
        return Condition(
            type=kind,
            status=truth,
            observed_generation=observed.run.metadata.generation,
            last_transition_time=since,
            reason=why,
            message=sentence,
        )

    if family is None:
        trained = condition(ConditionType.TRAINED, summary, reason, message)
        registered = condition(ConditionType.REGISTERED, "Unknown", Reason.WAITING)
    else:
        trained = condition(ConditionType.TRAINED, "True", Reason.FAMILY_COMPLETE)
        registered = (
            condition(ConditionType.REGISTERED, "True", Reason.ALL_REGISTERED)
            if complete
            else condition(ConditionType.REGISTERED, summary, reason, message)
        )
    return (
        condition(ConditionType.VALID, "True", Reason.ACCEPTED),
        trained,
        registered,
        condition(ConditionType.SUCCEEDED, summary, summary_reason, message),
    )


def _attempts(
    observed: Observed, *, phase: Phase, message: str, starting: int | None, now: datetime
) -> tuple[Attempt, ...]:
    current = observed.attempt
    attempts = {
        attempt.number: attempt if attempt.outcome != "Running" else _abandoned(attempt, now)
        for attempt in observed.previous.attempts
        if current is None or attempt.number != current.number
    }
    if starting is not None:
        attempts[starting] = Attempt(number=starting, started_at=now)
    if current is not None:
        earlier = {attempt.number: attempt for attempt in observed.previous.attempts}.get(current.number)
        outcome = _outcome(observed, phase)
        over = outcome != "Running"
        attempts[current.number] = Attempt(
            number=current.number,
            started_at=earlier.started_at if earlier else now,
            finished_at=(earlier.finished_at if earlier and earlier.finished_at else now) if over else None,
            outcome=outcome,
            message=message[:4096] if outcome in ("Failed", "Interrupted") else "",
        )
    return tuple(attempts[number] for number in sorted(attempts))[-MAX_ATTEMPTS:]


def _abandoned(attempt: Attempt, now: datetime) -> Attempt:
    return attempt.model_copy(
        update={
            "outcome": "Interrupted",
            "finished_at": now.replace(microsecond=0),
            "message": "Nobody was left to see how it ended.",
        }
    )


def _outcome(observed: Observed, phase: Phase) -> Outcome:
    if observed.attempt is not None and observed.attempt.alive:
        return "Running"
    if observed.family is not None:
        return "Succeeded"
    return phase if phase in ("Failed", "Interrupted") else "Running"


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
