"""The attempts of a run as its status records them: what each one's end was, once that is known.

On a cluster the record is also what the next decision reads: how many attempts failed, of what, and when the
last one ended. An end that is written down is not thought about again.
"""

from __future__ import annotations

from datetime import datetime

from ireko_api.quantity import from_bytes
from ireko_api.status import MAX_ATTEMPTS, Attempt
from ireko_operator.launch import Attempt as Seen
from ireko_operator.launch.rayjob import attempt_name
from ireko_operator.reconcile.attempt_ends import Ending
from ireko_operator.reconcile.state import Observed, StartAttempt
from ireko_operator.reconcile.verdict import Verdict

_LONGEST_MESSAGE = 4096


def last_record(observed: Observed) -> Attempt | None:
    """The record of the last attempt that was started."""
    return max(observed.previous.attempts, key=lambda attempt: attempt.number, default=None)


def record_of(observed: Observed, number: int) -> Attempt | None:
    """The record of one attempt."""
    return next((attempt for attempt in observed.previous.attempts if attempt.number == number), None)


def vanished(observed: Observed) -> int | None:
    """The attempt that was started and not seen to end, and of which nothing exists."""
    record = last_record(observed)
    if record is None or record.outcome != "Running":
        return None
    seen = observed.attempt
    return record.number if seen is None or seen.number < record.number else None


def next_number(observed: Observed) -> int:
    """The number of the attempt that would be started now, from 1; a vanished one is started again."""
    gone = vanished(observed) if observed.cluster is not None else None
    if gone is not None:
        return gone
    known = [attempt.number for attempt in observed.previous.attempts]
    if observed.attempt is not None:
        known.append(observed.attempt.number)
    return max(known, default=0) + 1


def records_after(observed: Observed, verdict: Verdict, *, now: datetime) -> tuple[Attempt, ...]:
    """The attempts once the actions of `verdict` are taken, oldest first."""
    attempts = {attempt.number: attempt for attempt in observed.previous.attempts}
    if observed.attempt is not None:
        attempts.setdefault(observed.attempt.number, _adopted(observed.attempt, now))
    ending = verdict.ending or _success(observed)
    if ending is not None and attempts[ending.number].outcome == "Running":
        attempts[ending.number] = _ended(attempts[ending.number], ending, now=now)
    starting = next((act for act in verdict.actions if isinstance(act, StartAttempt)), None)
    if starting is not None:
        attempts.setdefault(starting.number, _started(observed, starting, now))
    alive = starting.number if starting is not None else _current(observed)
    return tuple(
        _abandoned(attempt, now) if attempt.outcome == "Running" and number != alive else attempt
        for number, attempt in sorted(attempts.items())
    )[-MAX_ATTEMPTS:]


def _current(observed: Observed) -> int | None:
    """The one attempt that may be running; a laptop's earlier ones ended with the process that saw them."""
    gone = vanished(observed) if observed.cluster is not None else None
    if gone is not None:
        return gone
    return observed.attempt.number if observed.attempt is not None else None


def _adopted(seen: Seen, now: datetime) -> Attempt:
    """The record of an attempt that exists and was never written down."""
    view = seen.cluster
    if view is None:
        return Attempt(number=seen.number, started_at=now)
    return Attempt(number=seen.number, started_at=view.created_at or now, ray_job=view.ray_job)


def _started(observed: Observed, starting: StartAttempt, now: datetime) -> Attempt:
    metadata = observed.run.metadata
    if starting.memory is None or metadata.uid is None:
        return Attempt(number=starting.number, started_at=now)
    return Attempt(
        number=starting.number,
        started_at=now,
        ray_job=attempt_name(run=metadata.name, uid=metadata.uid, number=starting.number),
        memory=from_bytes(starting.memory.worker),
    )


def _success(observed: Observed) -> Ending | None:
    """A family is what success means, whatever became of the attempt after it was handed over."""
    seen = observed.attempt
    if seen is None or seen.alive or observed.family is None:
        return None
    return Ending(number=seen.number, outcome="Succeeded")


def _ended(attempt: Attempt, ending: Ending, *, now: datetime) -> Attempt:
    return attempt.model_copy(
        update={
            "outcome": ending.outcome,
            "finished_at": now.replace(microsecond=0),
            "reason": ending.reason or "",
            "message": ending.message[:_LONGEST_MESSAGE],
        }
    )


def _abandoned(attempt: Attempt, now: datetime) -> Attempt:
    message = "Nobody was left to see how it ended."
    return _ended(attempt, Ending(number=attempt.number, outcome="Interrupted", message=message), now=now)
