"""What to do next with a run, from what is observed of it: a pure function, wherever the run executes.

    before ──StartAttempt──▶ training ──family.json──▶ registering ──▶ Succeeded
       │                        │  ▲ (StopAttempt while somebody wants it to stop)
       ▼                        ▼
     Failed                Failed, Interrupted

Nothing is remembered between two passes: a family that MLflow holds for this very spec means that training
is over, whoever did it and whenever. Hence a run that is asked for again starts where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from signal import SIGKILL, Signals

from ireko_api.handoff import EXIT_INTERRUPTED, EXIT_SUCCEEDED, FAMILY_ARTIFACT, Family
from ireko_api.reasons import Reason
from ireko_api.status import Phase
from ireko_operator.launch import Attempt
from ireko_operator.reconcile.state import (
    Action,
    Decision,
    Observed,
    Outage,
    RegisterMembers,
    StartAttempt,
    Stop,
    StopAttempt,
    Unreadable,
)
from ireko_operator.reconcile.status import status_of

STOP_GRACE = timedelta(seconds=120)
"""How long a trainer may take to write a checkpoint before it is killed."""
OUTAGE_GRACE = timedelta(seconds=60)
"""How long MLflow may be away at the end of a run before the run gives up."""

_SIGNAL_EXIT_BASE = 128
"""Shells and containers report death by signal n as exit status 128 + n."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where the run stands, in a word for programs and a sentence for people."""

    phase: Phase
    reason: Reason
    """Of the step that the run is in."""
    message: str
    actions: tuple[Action, ...] = ()
    done: bool = False


def plan(observed: Observed, *, now: datetime) -> Decision:
    """The actions that bring the run forward, and its status once they are taken."""
    verdict = _decide(observed, now)
    return Decision(
        actions=verdict.actions,
        status=status_of(
            observed,
            phase=verdict.phase,
            reason=verdict.reason,
            message=verdict.message,
            starting=next((act.number for act in verdict.actions if isinstance(act, StartAttempt)), None),
            now=now,
        ),
        done=verdict.done,
    )


def plan_unreadable(seen: Unreadable, *, now: datetime) -> Decision:
    """The same for a run whose manifest cannot be read: it says so, starts nothing and can be deleted."""
    raise NotImplementedError


def next_number(observed: Observed) -> int:
    """The number of the attempt that would be started now, from 1."""
    return max((attempt.number for attempt in observed.previous.attempts), default=0) + 1


def _decide(observed: Observed, now: datetime) -> Verdict:
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
        return _unreachable(observed.outage)
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
    if len(observed.registrations) == len(family.members):
        message = (
            f"The family has {len(family.members)} members; every one is registered under its target's name."
        )
        return Verdict(phase="Succeeded", reason=Reason.ALL_REGISTERED, message=message, done=True)
    outage = observed.outage
    if outage is not None and _gives_up(observed, outage, now):
        return _unreachable(outage, registering=True)
    message = "The trainer has finished; its models are being registered."
    return Verdict(
        phase="Running",
        reason=Reason.REGISTERING,
        message=f"{message} Trying again: {outage.message}" if outage is not None else message,
        actions=(RegisterMembers(family=family),),
    )


def _without_a_family(observed: Observed, attempt: Attempt, now: datetime) -> Verdict:
    """A trainer that has ended and handed nothing over."""
    if attempt.exit_code == EXIT_SUCCEEDED:
        outage = observed.outage
        return _wait_out(observed, outage, now) if outage is not None else _handed_nothing_over(attempt)
    failure = attempt.failure
    if attempt.exit_code == EXIT_INTERRUPTED:
        message = failure.message if failure else "The trainer saved its state and ended."
        return Verdict(phase="Interrupted", reason=Reason.INTERRUPTED, message=message, done=True)
    if _was_killed(attempt):
        return Verdict(
            phase="Interrupted", reason=Reason.TRAINER_DIED, message=_describe_death(attempt), done=True
        )
    if failure is not None:
        return Verdict(phase="Failed", reason=Reason(failure.reason), message=failure.message, done=True)
    message = (
        f"The trainer ended with exit status {attempt.exit_code} without saying why; "
        f"its output is in {attempt.log}."
    )
    return Verdict(phase="Failed", reason=Reason.TRAINER_DIED, message=message, done=True)


def _handed_nothing_over(attempt: Attempt) -> Verdict:
    message = (
        f"The trainer ended with success, but MLflow holds no {FAMILY_ARTIFACT} of this run. Was the "
        "MLflow run deleted "
        f"or the database exchanged meanwhile? Its output is in {attempt.log}."
    )
    return Verdict(phase="Failed", reason=Reason.TRAINER_DIED, message=message, done=True)


def _gives_up(observed: Observed, outage: Outage, now: datetime) -> bool:
    """Whether to stop waiting for MLflow at the end of a run."""
    somebody_waits = observed.attempt is None or observed.stop > Stop.NO
    return outage.refused or somebody_waits or now - outage.since > OUTAGE_GRACE


def _wait_out(observed: Observed, outage: Outage, now: datetime) -> Verdict:
    if _gives_up(observed, outage, now):
        return _unreachable(outage)
    message = f"The trainer has ended; waiting for MLflow to say what it made. {outage.message}"
    return Verdict(phase="Running", reason=Reason.TRACKING_UNREACHABLE, message=message)


def _unreachable(outage: Outage, *, registering: bool = False) -> Verdict:
    reason = Reason.REGISTRATION_FAILED if registering and outage.refused else Reason.TRACKING_UNREACHABLE
    return Verdict(phase="Failed", reason=reason, message=outage.message, done=True)


def _was_killed(attempt: Attempt) -> bool:
    return _death_signal(attempt) is not None


def _death_signal(attempt: Attempt) -> int | None:
    if attempt.signal is not None:
        return attempt.signal
    code = attempt.exit_code or 0
    return code - _SIGNAL_EXIT_BASE if code > _SIGNAL_EXIT_BASE else None


def _describe_death(attempt: Attempt) -> str:
    number = _death_signal(attempt)
    try:
        name = Signals(number or 0).name
    except ValueError:
        name = f"signal {number}"
    if attempt.stopping_since is not None:
        return (
            f"The trainer ended by {name} before it had saved its state; "
            "the run goes on from its last checkpoint."
        )
    cause = ""
    if number == SIGKILL:
        cause = (
            " Most often that means that memory ran out: lower spec.pipeline.mlfs.batchSize or the "
            "maxLength of "
            "the data, or give it more memory."
        )
    return f"The trainer was killed by {name}.{cause} Its output is in {attempt.log}."
