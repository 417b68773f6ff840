"""The conditions of a run from what is observed and concluded: each computed anew, with its own time of change.

A condition is the truth about one aspect. Where nothing is concluded about an aspect it follows from what is
observed, so that a trouble that is mended leaves its condition by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ireko_api.reasons import ConditionType, Reason
from ireko_api.status import CompressionRunStatus, Condition, Phase
from ireko_operator.reconcile.attempt_ends import starts
from ireko_operator.reconcile.state import Observed, StartAttempt
from ireko_operator.reconcile.verdict import Truth, Verdict

_SUMMARY: dict[Phase, tuple[Truth, Reason]] = {
    "Pending": ("Unknown", Reason.IN_PROGRESS),
    "Running": ("Unknown", Reason.IN_PROGRESS),
    "Suspended": ("Unknown", Reason.SUSPENDED),
    "Succeeded": ("True", Reason.COMPLETE),
    "Failed": ("False", Reason.FAILED),
    "Interrupted": ("False", Reason.INTERRUPTED),
}


@dataclass(frozen=True, kw_only=True)
class State:
    """What one condition says."""

    truth: Truth
    reason: Reason
    message: str = ""


_WAITING = State(truth="Unknown", reason=Reason.WAITING)


def conditions_of(observed: Observed, verdict: Verdict, *, now: datetime) -> tuple[Condition, ...]:
    """All conditions, in the order in which they come true."""
    states = {
        ConditionType.VALID: State(truth="True", reason=Reason.ACCEPTED),
        **(_of_the_cluster(observed, verdict) if observed.cluster is not None else {}),
        **_of_the_work(observed, verdict),
    }
    if verdict.about in (ConditionType.VALID, ConditionType.ADMITTED, ConditionType.CLUSTER_READY):
        states[verdict.about] = State(
            truth=verdict.truth or "False", reason=verdict.reason, message=verdict.message
        )
    summary, reason = _SUMMARY[verdict.phase]
    states[ConditionType.SUCCEEDED] = State(
        truth=summary, reason=verdict.summary or reason, message=verdict.message
    )
    return as_conditions(
        states, previous=observed.previous, generation=observed.run.metadata.generation, now=now
    )


def as_conditions(
    states: Mapping[ConditionType, State],
    *,
    previous: CompressionRunStatus,
    generation: int | None,
    now: datetime,
) -> tuple[Condition, ...]:
    """The states as the API has them; the time of a transition moves only when the truth does."""
    before = {condition.type: condition for condition in previous.conditions}
    found = []
    for kind, state in states.items():
        earlier = before.get(kind)
        same = earlier is not None and earlier.status == state.truth
        found.append(
            Condition(
                type=kind,
                status=state.truth,
                observed_generation=generation,
                last_transition_time=earlier.last_transition_time if earlier is not None and same else now,
                reason=state.reason,
                message=state.message,
            )
        )
    return tuple(found)


def _of_the_work(observed: Observed, verdict: Verdict) -> dict[ConditionType, State]:
    family = observed.family
    concluded = _WAITING
    if verdict.about in (ConditionType.TRAINED, ConditionType.REGISTERED):
        truth = verdict.truth or _SUMMARY[verdict.phase][0]
        concluded = State(truth=truth, reason=verdict.reason, message=verdict.message)
    if family is None:
        return {ConditionType.TRAINED: concluded, ConditionType.REGISTERED: _WAITING}
    complete = len(observed.registrations) == len(family.members)
    return {
        ConditionType.TRAINED: State(truth="True", reason=Reason.FAMILY_COMPLETE),
        ConditionType.REGISTERED: State(truth="True", reason=Reason.ALL_REGISTERED)
        if complete
        else concluded,
    }


def _of_the_cluster(observed: Observed, verdict: Verdict) -> dict[ConditionType, State]:
    return {
        ConditionType.ADMITTED: _admitted(observed),
        ConditionType.CLUSTER_READY: _cluster_ready(observed, verdict),
    }


def _admitted(observed: Observed) -> State:
    if observed.run.spec.compute.queue_name is None:
        return State(truth="True", reason=Reason.UNQUEUED)
    attempt = observed.attempt
    admitted = attempt is not None and attempt.alive and attempt.cluster and not attempt.cluster.suspended
    return State(truth="True", reason=Reason.QUOTA_RESERVED) if admitted else _WAITING


def _cluster_ready(observed: Observed, verdict: Verdict) -> State:
    attempt = observed.attempt
    view = attempt.cluster if attempt is not None and attempt.alive else None
    starting = any(isinstance(action, StartAttempt) for action in verdict.actions)
    if view is None or view.suspended or view.deleting or verdict.ending is not None:
        return _WAITING if starting else State(truth="False", reason=Reason.CLUSTER_RELEASED)
    if view.troubles:
        worst = view.troubles[0]
        return State(truth="False", reason=worst.reason, message=worst.message)
    if starts(view):
        return State(truth="Unknown", reason=Reason.CLUSTER_STARTING)
    return State(truth="True", reason=Reason.PODS_RUNNING)
