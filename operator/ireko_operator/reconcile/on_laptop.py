"""What to do next with a run whose trainer is a process of this machine.

    before ──StartAttempt──▶ training ──family.json──▶ registering ──▶ Succeeded
       │                        │  ▲ (StopAttempt while somebody wants it to stop)
       ▼                        ▼
     Failed                Failed, Interrupted

Somebody sits in front of it: nothing is tried again by itself, and whoever stopped the run starts it again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from ireko_api.handoff import Family
from ireko_api.reasons import Reason
from ireko_operator.launch import Attempt
from ireko_operator.reconcile import attempt_ends
from ireko_operator.reconcile.after_training import complete, is_registered, registering, unreachable
from ireko_operator.reconcile.records import next_number
from ireko_operator.reconcile.state import Action, Observed, Outage, StartAttempt, Stop, StopAttempt
from ireko_operator.reconcile.verdict import Verdict

STOP_GRACE = timedelta(seconds=120)
"""How long a trainer may take to write a checkpoint before it is killed."""
OUTAGE_GRACE = timedelta(seconds=60)
"""How long MLflow may be away at the end of a run before the run gives up."""


def decide(observed: Observed, *, now: datetime) -> Verdict:
    """Where the run stands, and what brings it forward."""
    attempt = observed.attempt
    if attempt is not None and attempt.alive:
        return _while_training(observed, attempt, now)
    if observed.family is not None:
        return _after_training(observed, observed.family, now)
    if attempt is not None:
        return _without_a_family(observed, attempt, now)
    return _before_training(observed)


def _before_training(observed: Observed) -> Verdict:
    if observed.outage is not None:
        return unreachable(observed.outage)
    if observed.stop > Stop.NO:
        message = "The run was stopped before the trainer was started."
        return Verdict(phase="Interrupted", reason=Reason.INTERRUPTED, message=message, done=True)
    number = next_number(observed)
    return Verdict(
        phase="Running",
        reason=Reason.TRAINING,
        message=f"Attempt {number} of the trainer is being started.",
        actions=(StartAttempt(number=number),),
    )


def _while_training(observed: Observed, attempt: Attempt, now: datetime) -> Verdict:
    if observed.stop is Stop.NO:
        message = f"Attempt {attempt.number} of the trainer is at work."
        return Verdict(phase="Running", reason=Reason.TRAINING, message=message)
    since = attempt.stopping_since
    overdue = since is not None and now - since > STOP_GRACE
    if overdue or observed.stop is Stop.NOW:
        message = "The trainer is killed; the run goes on from its last checkpoint."
        actions: tuple[Action, ...] = (StopAttempt(number=attempt.number, force=True),)
    else:
        message = "The trainer was asked to save its state and end."
        actions = () if since is not None else (StopAttempt(number=attempt.number),)
    return Verdict(phase="Running", reason=Reason.TRAINING, message=message, actions=actions)


def _after_training(observed: Observed, family: Family, now: datetime) -> Verdict:
    if is_registered(observed, family):
        return complete(family)
    outage = observed.outage
    if outage is not None and _gives_up(observed, outage, now):
        return unreachable(outage, registering=True)
    return registering(family, outage=outage)


def _without_a_family(observed: Observed, attempt: Attempt, now: datetime) -> Verdict:
    """A trainer that has ended and handed nothing over."""
    if not attempt_ends.succeeded(attempt):
        return _over(attempt_ends.ending_on_a_laptop(attempt))
    outage = observed.outage
    if outage is None:
        return _over(attempt_ends.handed_nothing_over(attempt))
    if _gives_up(observed, outage, now):
        given_up = unreachable(outage)
        ending = attempt_ends.Ending(
            number=attempt.number, outcome="Failed", reason=given_up.reason, message=given_up.message
        )
        return replace(given_up, ending=ending)
    message = f"The trainer has ended; waiting for MLflow to say what it made. {outage.message}"
    return Verdict(phase="Running", reason=Reason.TRACKING_UNREACHABLE, message=message)


def _over(ending: attempt_ends.Ending) -> Verdict:
    return Verdict(
        phase="Interrupted" if ending.outcome == "Interrupted" else "Failed",
        reason=ending.reason or Reason.FAILED,
        message=ending.message,
        ending=ending,
        done=True,
    )


def _gives_up(observed: Observed, outage: Outage, now: datetime) -> bool:
    """Whether to stop waiting for MLflow at the end of a run."""
    somebody_waits = observed.attempt is None or observed.stop > Stop.NO
    return outage.refused or somebody_waits or now - outage.since > OUTAGE_GRACE
