"""What to do next with a run whose trainer is a RayJob: nobody sits in front of it.

    waiting ──StartAttempt──▶ starting ──▶ training ──family.json──▶ registering ──▶ Succeeded
       ▲                         │            │
       └────── backing off ◀─────┴────────────┤
                                              ▼
                                   Failed (final reason, last attempt, deadline)

Each step looks at one question and either answers it or leaves it to the next. The order is the meaning: a
run that is being deleted is nothing else, one that is over stays over, and a second attempt is not thought of
while anything of the first may still be alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from ireko_api.handoff import Family
from ireko_api.reasons import ConditionType, Reason
from ireko_api.status import CompressionRunStatus
from ireko_operator.launch import Attempt, ClusterView
from ireko_operator.reconcile.after_attempt import OUTAGE_RETRY, after, after_a_record, after_an_attempt
from ireko_operator.reconcile.after_training import complete, is_registered, registering, unregistered
from ireko_operator.reconcile.attempt_ends import Ending
from ireko_operator.reconcile.conditions import State, as_conditions
from ireko_operator.reconcile.following import follow, paused
from ireko_operator.reconcile.records import record_of, vanished
from ireko_operator.reconcile.starting import SETTLE_RETRY, start
from ireko_operator.reconcile.state import (
    Action,
    Decision,
    DeleteAttempt,
    DeleteRun,
    Observed,
    OnCluster,
    RemoveFinalizer,
)
from ireko_operator.reconcile.status import status_of
from ireko_operator.reconcile.verdict import Verdict

DELETION_GRACE = timedelta(minutes=5)
"""How long the deletion of a run waits for KubeRay to stop its job. Its objects are marked for deletion by then
and go with the run whoever is away."""


def plan_on_cluster(observed: Observed, cluster: OnCluster, *, now: datetime) -> Decision:
    """The actions that bring the run forward, and its status once they are taken."""
    attempts = [*cluster.earlier, *((observed.attempt,) if observed.attempt is not None else ())]
    if cluster.deleting:
        return being_deleted(attempts, finalizer=cluster.finalizer, status=_leaving(observed, now), now=now)
    if observed.previous.phase in ("Succeeded", "Failed"):
        return _finished(observed, cluster, attempts, now)
    verdict = _decide(observed, cluster, now)
    status = status_of(observed, verdict, now=now)
    if verdict.done:
        return _finished(replace(observed, previous=status), cluster, attempts, now)
    strays = tuple(DeleteAttempt(number=a.number) for a in cluster.earlier if _is_to_be_stopped(a))
    return Decision(actions=(*strays, *verdict.actions), status=status, requeue_after=verdict.requeue_after)


# --- a run that goes, and one that is over ---


def being_deleted(
    attempts: Sequence[Attempt], *, finalizer: bool, status: CompressionRunStatus, now: datetime
) -> Decision:
    """The deletion of a run: its jobs are stopped first, whatever state they are in."""
    if not finalizer:
        return Decision(status=status, done=True)
    actions = tuple(DeleteAttempt(number=a.number) for a in attempts if _may_be_deleted(a))
    if actions or not all(_has_waited(attempt, now) for attempt in attempts):
        return Decision(actions=actions, status=status, requeue_after=SETTLE_RETRY.total_seconds())
    return Decision(actions=(RemoveFinalizer(),), status=status, done=True)


def _leaving(observed: Observed, now: datetime) -> CompressionRunStatus:
    """The last status; where the run was not over it says that it never will be."""
    previous = _as_of_now(observed)
    if previous.phase in ("Succeeded", "Failed"):
        return previous
    message = "The run was deleted; its pods are being stopped."
    told = as_conditions(
        {ConditionType.SUCCEEDED: State(truth="Unknown", reason=Reason.DELETING, message=message)},
        previous=previous,
        generation=previous.observed_generation,
        now=now,
    )
    others = [c for c in previous.conditions if c.type != ConditionType.SUCCEEDED]
    return previous.model_copy(update={"reason": Reason.DELETING.value, "conditions": (*others, *told)})


def _finished(observed: Observed, cluster: OnCluster, attempts: Sequence[Attempt], now: datetime) -> Decision:
    """A run that is over stays over; what is left of it is put away."""
    status = _as_of_now(observed)
    actions: list[Action] = [DeleteAttempt(number=a.number) for a in attempts if _is_to_be_stopped(a)]
    if any(attempt.alive for attempt in attempts):
        return Decision(actions=tuple(actions), status=status, requeue_after=SETTLE_RETRY.total_seconds())
    if cluster.finalizer:
        actions.append(RemoveFinalizer())
    remaining = _until_deleted(observed, now)
    if remaining is not None and remaining <= 0:
        return Decision(actions=(*actions, DeleteRun()), status=status, done=True)
    return Decision(actions=tuple(actions), status=status, done=remaining is None, requeue_after=remaining)


def _as_of_now(observed: Observed) -> CompressionRunStatus:
    """The last status, said of the manifest as it is now: all that may change is the time to live."""
    generation = observed.run.metadata.generation
    previous = observed.previous
    return previous.model_copy(
        update={
            "observed_generation": generation,
            "conditions": tuple(
                condition.model_copy(update={"observed_generation": generation})
                for condition in previous.conditions
            ),
        }
    )


def _until_deleted(observed: Observed, now: datetime) -> float | None:
    ttl, end = observed.run.spec.compute.ttl_seconds_after_finished, observed.previous.finished_at
    if ttl is None or end is None:
        return None
    return (end + timedelta(seconds=ttl) - now).total_seconds()


def _may_be_deleted(attempt: Attempt) -> bool:
    return attempt.cluster is not None and not attempt.cluster.deleting


def _is_to_be_stopped(attempt: Attempt) -> bool:
    return attempt.alive and _may_be_deleted(attempt)


def _has_waited(attempt: Attempt, now: datetime) -> bool:
    since = attempt.stopping_since
    return since is not None and now - since > DELETION_GRACE


# --- a run under way ---


def _decide(observed: Observed, cluster: OnCluster, now: datetime) -> Verdict:
    attempt = observed.attempt
    # 1. An attempt lives: nothing else is thought of.
    if attempt is not None and attempt.alive and attempt.cluster is not None:
        return _while_it_lives(observed, attempt, attempt.cluster, now)
    # 2. A family is what attempts are for, whatever became of the one that made it.
    if observed.family is not None:
        return _after_training(observed, observed.family)
    # 3. The last attempt ended without one; one that vanished did not end.
    after_it = after_an_attempt(observed, now=now) if vanished(observed) is None else None
    # 4. Nothing is left to wait for but what a start needs.
    return after_it or start(observed, cluster, now=now)


def _while_it_lives(observed: Observed, attempt: Attempt, view: ClusterView, now: datetime) -> Verdict:
    if view.deleting:
        return _while_it_stops(observed, attempt, now)
    followed = follow(observed, attempt, view, now=now)
    if not isinstance(followed, Ending):
        return followed
    verdict = after(observed, followed, now=now)
    return replace(verdict, actions=(DeleteAttempt(number=attempt.number),))


def _while_it_stops(observed: Observed, attempt: Attempt, now: datetime) -> Verdict:
    """An attempt that was deleted, by us for the reason in its record or by somebody else for none."""
    record = record_of(observed, attempt.number)
    said = after_a_record(observed, record, now=now) if record and record.outcome != "Running" else None
    if said is not None:
        return said
    if observed.run.spec.suspend:
        return paused()
    return Verdict(
        phase="Pending",
        reason=Reason.WAITING,
        message=f"Attempt {attempt.number} is being stopped before the next one starts.",
        about=ConditionType.TRAINED,
        requeue_after=SETTLE_RETRY.total_seconds(),
    )


def _after_training(observed: Observed, family: Family) -> Verdict:
    if is_registered(observed, family):
        return complete(family)
    outage = observed.outage
    verdict = registering(family, outage=outage)
    if outage is None:
        return verdict
    # Training is over and nothing holds a cluster, so patience costs nothing.
    return replace(
        verdict,
        reason=unregistered(outage),
        truth="False",
        requeue_after=OUTAGE_RETRY.total_seconds(),
    )
