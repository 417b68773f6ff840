"""A run whose last attempt ended without a family: whether it is tried again, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from ireko_api.reasons import Reason
from ireko_api.status import Attempt as Record
from ireko_operator.launch import Attempt
from ireko_operator.reconcile import attempt_ends, retry
from ireko_operator.reconcile.attempt_ends import Ending
from ireko_operator.reconcile.following import is_out_of_time, out_of_time, paused
from ireko_operator.reconcile.records import last_record, record_of
from ireko_operator.reconcile.state import Observed
from ireko_operator.reconcile.verdict import Verdict

OUTAGE_RETRY = timedelta(seconds=15)
"""How often MLflow is asked again while it is away."""


def after_an_attempt(observed: Observed, *, now: datetime) -> Verdict | None:
    """What follows from the end of the last attempt; None when the next one may start."""
    seen, last = observed.attempt, last_record(observed)
    if seen is None or (last is not None and seen.number < last.number):
        return None if last is None else after_a_record(observed, last, now=now)
    record = record_of(observed, seen.number)
    if record is not None and record.outcome != "Running":
        return after_a_record(observed, record, now=now)
    return _not_known_yet(observed, seen) or after(observed, _ending_of(observed, seen), now=now)


def after(observed: Observed, ending: Ending, *, now: datetime) -> Verdict:
    """What follows from an end that is known since now."""
    record = Record(
        number=ending.number,
        started_at=now,
        finished_at=now,
        outcome=ending.outcome,
        reason=ending.reason or "",
        message=ending.message,
    )
    verdict = after_a_record(observed, record, now=now)
    if verdict is None:
        raise AssertionError("the next attempt waits at least a second")
    return replace(verdict, ending=ending)


def after_a_record(observed: Observed, record: Record, *, now: datetime) -> Verdict | None:
    """What follows from the last attempt, whose end is `record`; None when the next one may start."""
    attempts = [*(a for a in observed.previous.attempts if a.number != record.number), record]
    compute = observed.run.spec.compute
    if record.outcome == "Failed" and not retry.may_try_again(
        record.reason, attempts=attempts, compute=compute
    ):
        return _failed(record, attempts)
    if is_out_of_time(observed, now=now):
        return out_of_time(observed)
    if observed.run.spec.suspend:
        return paused()
    if record.reason == Reason.SUSPENDED:
        return None
    due = (record.finished_at or now) + retry.backoff(attempts, compute=compute)
    return _back_off(record, due, now) if now < due else None


def _not_known_yet(observed: Observed, seen: Attempt) -> Verdict | None:
    """The verdict while MLflow cannot say what an attempt left; what it told itself needs nobody else."""
    if seen.failure is not None or observed.outage is None:
        return None
    return Verdict(
        phase="Running",
        reason=Reason.TRACKING_UNREACHABLE,
        message=f"Attempt {seen.number} has ended; waiting for MLflow to say what it made. "
        f"{observed.outage.message}",
        requeue_after=OUTAGE_RETRY.total_seconds(),
    )


def _ending_of(observed: Observed, seen: Attempt) -> Ending:
    if seen.cluster is None:
        raise AssertionError("an attempt on a cluster has objects")
    tracked = observed.tracked.failure if observed.tracked is not None else None
    if seen.failure is None and tracked is None and attempt_ends.succeeded(seen):
        return attempt_ends.handed_nothing_over(seen)
    return attempt_ends.ending_on_cluster(seen, seen.cluster, tracked=tracked)


def _failed(record: Record, attempts: Sequence[Record]) -> Verdict:
    final = record.reason in retry.FINAL
    count = retry.failures(attempts)
    lead = "" if final or count == 1 else f"All {count} attempts failed. The last one: "
    return Verdict(
        phase="Failed",
        reason=_known(record.reason),
        message=f"{lead}{record.message}",
        summary=Reason.FAILED if final else Reason.ATTEMPTS_EXHAUSTED,
        done=True,
    )


def _known(reason: str) -> Reason:
    """A recorded reason; another release may have had one that this one does not know."""
    return next((known for known in Reason if known == reason), Reason.FAILED)


def _back_off(record: Record, due: datetime, now: datetime) -> Verdict:
    why = f" {record.message}" if record.message else ""
    return Verdict(
        phase="Pending",
        reason=Reason.BACKING_OFF,
        message=f"Attempt {record.number} ended by {record.reason or record.outcome}; the next one starts at "
        f"{due:%H:%M:%S} UTC.{why}",
        requeue_after=(due - now).total_seconds(),
    )
