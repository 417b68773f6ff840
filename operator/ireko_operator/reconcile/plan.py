"""What to do next with a run, from what is observed of it: a pure function, wherever the run executes.

Nothing is remembered between two passes but the status. A family that MLflow holds for this very spec means
that training is over, whoever did it and whenever. Hence a run that is asked for again starts where it
stands.
"""

from __future__ import annotations

from datetime import datetime

from ireko_api.reasons import ConditionType, Reason
from ireko_operator.reconcile import on_laptop
from ireko_operator.reconcile.conditions import State, as_conditions
from ireko_operator.reconcile.on_cluster import being_deleted, plan_on_cluster
from ireko_operator.reconcile.state import Decision, Observed, Unreadable
from ireko_operator.reconcile.status import status_of


def plan(observed: Observed, *, now: datetime) -> Decision:
    """The actions that bring the run forward, and its status once they are taken."""
    if observed.cluster is not None:
        return plan_on_cluster(observed, observed.cluster, now=now)
    verdict = on_laptop.decide(observed, now=now)
    return Decision(actions=verdict.actions, status=status_of(observed, verdict, now=now), done=verdict.done)


def plan_unreadable(seen: Unreadable, *, now: datetime) -> Decision:
    """The same for a run whose manifest cannot be read: it says so, starts nothing and can be deleted."""
    previous = seen.previous
    if seen.deleting:
        return being_deleted(seen.attempts, finalizer=seen.finalizer, status=previous, now=now)
    if previous.phase in ("Succeeded", "Failed"):
        return Decision(status=previous, done=True)
    message = "This operator cannot read the manifest: " + "; ".join(seen.problems)
    states = {
        ConditionType.VALID: State(truth="False", reason=Reason.INVALID_SPEC, message=message),
        ConditionType.SUCCEEDED: State(truth="Unknown", reason=Reason.IN_PROGRESS, message=message),
    }
    told = as_conditions(states, previous=previous, generation=seen.generation, now=now)
    others = [condition for condition in previous.conditions if condition.type not in states]
    return Decision(
        status=previous.model_copy(
            update={
                "phase": "Pending",
                "reason": Reason.INVALID_SPEC.value,
                "observed_generation": seen.generation,
                "conditions": (told[0], *others, told[1]),
            }
        ),
        done=True,
    )
