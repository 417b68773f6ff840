"""Whether and when a run tries again after an attempt, and with how much memory.

A trouble that lies in the manifest or in the data comes back however often it is tried; everything that
machines do to a trainer may pass. Attempts resume from storage, so trying again costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction

from ireko_api.quantity import to_bytes
from ireko_api.reasons import Reason
from ireko_api.spec import CompressionRunSpec, Compute
from ireko_api.status import Attempt as AttemptStatus
from ireko_operator.launch import Memory

FINAL = frozenset(
    {
        Reason.INVALID_INPUT,
        Reason.NOTHING_FITS,
        Reason.DIVERGED,
        Reason.RAY_JOB_INVALID,
        Reason.CANCELLED,
        Reason.DEADLINE_EXCEEDED,
    }
)
"""What another attempt would end by as well."""

LONGEST_BACKOFF = timedelta(minutes=10)
_MEMORY_GROWTH = Fraction(3, 2)
_MEBIBYTE = 2**20


def failures(attempts: Sequence[AttemptStatus]) -> int:
    """How many attempts failed; one that was interrupted, by a drained node or a pause, did not."""
    return sum(attempt.outcome == "Failed" for attempt in attempts)


def may_try_again(reason: str, *, attempts: Sequence[AttemptStatus], compute: Compute) -> bool:
    """Whether another attempt follows on one that ended for `reason`; `attempts` has all that ended."""
    return reason not in FINAL and failures(attempts) < compute.max_attempts


def backoff(attempts: Sequence[AttemptStatus], *, compute: Compute) -> timedelta:
    """How long after the end of the last of `attempts` the next one starts."""
    doublings = max(0, failures(attempts) - 1)
    return min(LONGEST_BACKOFF, timedelta(seconds=compute.retry_backoff_seconds << doublings))


def memory_of_next(attempts: Sequence[AttemptStatus], *, spec: CompressionRunSpec) -> Memory:
    """The memory of the attempt that follows on `attempts`: half as much again for each that ran out of it.

    Without workers the head trains and needs what a worker would.
    """
    compute = spec.compute
    worker = compute.resources_per_worker.memory_bytes
    head = compute.head.resources.memory_bytes
    if spec.training_workers == 0:
        head = max(head, worker)
    if compute.max_memory is None:
        return Memory(worker=worker, head=head)
    exhausted = sum(attempt.reason == Reason.OUT_OF_MEMORY for attempt in attempts)
    most = to_bytes(compute.max_memory)
    return Memory(worker=_grown(worker, exhausted, most=most), head=_grown(head, exhausted, most=most))


def _grown(size: int, times: int, *, most: int) -> int:
    """`size` times 1.5^`times` in whole mebibytes, at most `most` and never less than `size`."""
    if times == 0:
        return size
    wanted = size * _MEMORY_GROWTH**times
    return max(size, min(most, -(-wanted // _MEBIBYTE) * _MEBIBYTE))
