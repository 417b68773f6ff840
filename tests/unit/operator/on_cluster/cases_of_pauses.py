"""Decisions about a run that is paused or queues."""

from __future__ import annotations

from cluster_runs import attempt, record, run_with, seen, status
from decision_case import ADMITTED, EVICTED, PENDING, QUEUED, STARTING, SUSPENDED, Case, start

from ireko_operator.reconcile.state import DeleteAttempt, SuspendJob

PAUSES = {
    "a pause takes the pods away": Case(
        seen=seen(run_with(suspend=True), attempt=attempt(), previous=status(record())),
        phase="Suspended",
        reason="Suspended",
        does=(SuspendJob(number=1, suspended=True),),
        about=("Admitted", "False", "Suspended"),
    ),
    "a pause before the pods run takes them away": Case(
        seen=seen(run_with(suspend=True), attempt=attempt(**STARTING), previous=status(record())),
        phase="Suspended",
        reason="Suspended",
        does=(SuspendJob(number=1, suspended=True),),
    ),
    "a pause that is under way": Case(
        seen=seen(
            run_with(suspend=True),
            attempt=attempt(deployment_status="Suspending", suspended=True),
            previous=status(record()),
        ),
        phase="Suspended",
        reason="Suspended",
    ),
    "a pause lasts": Case(
        seen=seen(run_with(suspend=True), attempt=attempt(**SUSPENDED), previous=status(record())),
        phase="Suspended",
        reason="Suspended",
        about=("ClusterReady", "False", "ClusterReleased"),
        waits=False,
    ),
    "a pause ends": Case(
        seen=seen(attempt=attempt(**SUSPENDED), previous=status(record(), phase="Suspended")),
        phase="Pending",
        reason="ClusterStarting",
        does=(SuspendJob(number=1, suspended=False),),
    ),
    "a RayJob that may go on and has not yet": Case(
        seen=seen(attempt=attempt(**{**SUSPENDED, "suspended": False}), previous=status(record())),
        phase="Pending",
        reason="ClusterStarting",
    ),
    "a pause of a run that queues gives up its place": Case(
        seen=seen(run_with(suspend=True, queueName="gpus"), attempt=attempt(), previous=status(record())),
        phase="Suspended",
        reason="Suspended",
        does=(DeleteAttempt(number=1),),
    ),
    "a pause of a run that Kueue queued by its own default": Case(
        seen=seen(run_with(suspend=True), attempt=attempt(workload=ADMITTED), previous=status(record())),
        phase="Suspended",
        reason="Suspended",
        does=(DeleteAttempt(number=1),),
    ),
    "a pause whose attempt is on its way out": Case(
        seen=seen(
            run_with(suspend=True, queueName="gpus"),
            attempt=attempt(deleting=True),
            previous=status(record(1, "Interrupted", reason="Suspended")),
        ),
        phase="Suspended",
        reason="Suspended",
    ),
    "the end of such a pause queues anew": Case(
        seen=seen(run_with(queueName="gpus"), previous=status(record(1, "Interrupted", reason="Suspended"))),
        phase="Pending",
        reason="QueuePending",
        does=(start(2),),
    ),
    "a run that waits in its queue": Case(
        seen=seen(
            run_with(queueName="gpus"),
            attempt=attempt(**QUEUED, workload=PENDING),
            previous=status(record(), active_since=None),
        ),
        phase="Pending",
        reason="QueuePending",
        about=("Admitted", "False", "QueuePending"),
        waits=False,
    ),
    "a run that its queue lets through": Case(
        seen=seen(
            run_with(queueName="gpus"),
            attempt=attempt(**STARTING, workload=ADMITTED),
            previous=status(record()),
        ),
        phase="Pending",
        reason="ClusterStarting",
        about=("Admitted", "True", "QuotaReserved"),
    ),
    "a run that its queue let through a moment ago": Case(
        seen=seen(
            run_with(queueName="gpus"),
            attempt=attempt(**QUEUED, workload=ADMITTED),
            previous=status(record(), active_since=None),
        ),
        phase="Pending",
        reason="ClusterStarting",
    ),
    "a run that lost its place": Case(
        seen=seen(
            run_with(queueName="gpus"),
            attempt=attempt(**SUSPENDED, workload=EVICTED),
            previous=status(record()),
        ),
        phase="Pending",
        reason="Preempted",
        about=("Admitted", "False", "Preempted"),
    ),
}
