"""The state machine of a run on a cluster as a table: what is seen, what is done, what is said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from cluster_runs import (
    NOW,
    PLATFORM,
    UID,
    ago,
    attempt,
    failed,
    record,
    run_with,
    seen,
    status,
    succeeded,
    view,
)

from ireko_api.handoff import Failure, Family
from ireko_api.reasons import ConditionType, Reason
from ireko_api.status import CompressionRunStatus
from ireko_operator.launch import Attempt, Memory, Trouble, WorkloadView
from ireko_operator.launch.platform import Platform
from ireko_operator.reconcile.on_cluster import DELETION_GRACE
from ireko_operator.reconcile.plan import plan, plan_unreadable
from ireko_operator.reconcile.starting import REFUSAL_RETRY
from ireko_operator.reconcile.state import (
    Action,
    DeleteAttempt,
    DeleteRun,
    EnsureFinalizer,
    Observed,
    Outage,
    Refusal,
    RegisterMembers,
    Registration,
    RemoveFinalizer,
    StartAttempt,
    SuspendJob,
    TrackedRun,
    Unreadable,
)

GIB = 2**30
MEMORY = Memory(worker=2 * GIB, head=4 * GIB)
AWAY = Outage(message="MLflow does not answer.", since=ago(600))
REFUSED = Outage(message="MLflow says no.", since=ago(600), refused=True)
DIVERGED = Failure(reason="Diverged", message="The loss became NaN.")
LOST = Failure(reason="WorkerLost", message="Workers died.", resumable=True)
SAVED = Failure(reason="Interrupted", message="The state is saved.", resumable=True)
PULL = Trouble(reason=Reason.IMAGE_PULL_FAILED, message="The image cannot be pulled.")
QUOTA = Trouble(reason=Reason.QUOTA_EXCEEDED, message="The quota is used up.")
STARTING = {"job_status": "", "deployment_status": "Initializing", "ready_pods": 0}
SUSPENDED = {"job_status": "", "deployment_status": "Suspended", "suspended": True, "live_pods": 0}
QUEUED = {**SUSPENDED, "deployment_status": ""}
PENDING = WorkloadView(state="Pending", reason="Pending", message="Waiting for quota.")
EVICTED = WorkloadView(state="Evicted", reason="Preempted", message="Preempted by another.")
ADMITTED = WorkloadView(state="Admitted")


def start(number: int = 1, memory: Memory = MEMORY) -> StartAttempt:
    return StartAttempt(number=number, memory=memory)


@dataclass(frozen=True, kw_only=True)
class Case:
    seen: Observed
    phase: str
    reason: str
    """Of the status."""
    does: tuple[Action, ...] = ()
    about: tuple[str, str, str] | None = None
    """One condition: type, status, reason."""
    waits: bool | None = None
    """Whether it asks to be looked at again by itself; None: it does not matter."""


FINISHED = status(record(1, "Succeeded"), phase="Succeeded", finished_at=ago(100))
GIVEN_UP = status(record(1, "Failed", reason="Diverged"), phase="Failed", finished_at=ago(100))

CASES = {
    # --- a start ---
    "a new run gets its finalizer and its first attempt": Case(
        seen=seen(finalizer=False),
        phase="Pending",
        reason="ClusterStarting",
        does=(EnsureFinalizer(), start()),
        waits=True,
    ),
    "a run that has its finalizer only starts": Case(
        seen=seen(), phase="Pending", reason="ClusterStarting", does=(start(),)
    ),
    "a run that queues starts suspended and waits": Case(
        seen=seen(run_with(queueName="gpus")),
        phase="Pending",
        reason="QueuePending",
        does=(start(),),
        about=("Admitted", "False", "QueuePending"),
    ),
    "a run that is paused from the start starts nothing": Case(
        seen=seen(run_with(suspend=True), finalizer=False),
        phase="Suspended",
        reason="Suspended",
        about=("Admitted", "False", "Suspended"),
        waits=False,
    ),
    "a run without storage is told so": Case(
        seen=seen(run_with(storage=None)),
        phase="Pending",
        reason="StorageRequired",
        about=("Valid", "False", "StorageRequired"),
        waits=False,
    ),
    "a run with a server that is not allowed is told so": Case(
        seen=seen(run_with(registry={"trackingUri": "http://other:5000"})),
        phase="Pending",
        reason="TrackingNotAllowed",
        about=("Valid", "False", "TrackingNotAllowed"),
    ),
    "a run with an allowed server starts": Case(
        seen=seen(
            run_with(registry={"trackingUri": "http://other:5000"}),
            platform=replace(PLATFORM, allowed_tracking_uris=frozenset({"http://other:5000"})),
        ),
        phase="Pending",
        reason="ClusterStarting",
        does=(start(),),
    ),
    "an operator without a server says so": Case(
        seen=seen(platform=Platform(trainer_image="a")), phase="Pending", reason="TrackingRequired"
    ),
    "an operator without an image says so": Case(
        seen=seen(platform=Platform(tracking_uri="http://mlflow:5000")),
        phase="Pending",
        reason="ImageRequired",
    ),
    "a run whose pods want too much is told so": Case(
        seen=seen(run_with(podTemplate={"spec": {"hostNetwork": True}})),
        phase="Pending",
        reason="PodTemplateRefused",
        about=("Valid", "False", "PodTemplateRefused"),
    ),
    "nothing starts without KubeRay": Case(
        seen=seen(kuberay=False),
        phase="Pending",
        reason="KubeRayMissing",
        about=("ClusterReady", "False", "KubeRayMissing"),
        waits=True,
    ),
    "nothing starts while MLflow is away": Case(
        seen=seen(outage=AWAY),
        phase="Pending",
        reason="TrackingUnreachable",
        about=("Trained", "Unknown", "TrackingUnreachable"),
        waits=True,
    ),
    "what the API server refused is told": Case(
        seen=seen(refusal=Refusal(trouble=QUOTA, at=ago(1))),
        phase="Pending",
        reason="QuotaExceeded",
        about=("ClusterReady", "False", "QuotaExceeded"),
        waits=True,
    ),
    "what the API server refused is tried again": Case(
        seen=seen(refusal=Refusal(trouble=QUOTA, at=NOW - REFUSAL_RETRY)),
        phase="Pending",
        reason="ClusterStarting",
        does=(start(),),
    ),
    # --- an attempt that lives ---
    "a RayJob that KubeRay has not seen yet": Case(
        seen=seen(
            attempt=attempt(deployment_status="", job_status="", ready_pods=0), previous=status(record())
        ),
        phase="Pending",
        reason="ClusterStarting",
        about=("ClusterReady", "Unknown", "ClusterStarting"),
        waits=True,
    ),
    "pods that are being started": Case(
        seen=seen(attempt=attempt(**STARTING), previous=status(record())),
        phase="Pending",
        reason="ClusterStarting",
        waits=True,
    ),
    "pods that cannot be started": Case(
        seen=seen(attempt=attempt(**STARTING, troubles=(PULL,)), previous=status(record())),
        phase="Pending",
        reason="ImagePullFailed",
        about=("ClusterReady", "False", "ImagePullFailed"),
        waits=True,
    ),
    "pods that did not start in time": Case(
        seen=seen(
            run_with(pendingDeadlineSeconds=60), attempt=attempt(**STARTING), previous=status(record())
        ),
        phase="Pending",
        reason="BackingOff",
        does=(DeleteAttempt(number=1),),
        waits=True,
    ),
    "pods that did not start in time for the last time": Case(
        seen=seen(
            run_with(pendingDeadlineSeconds=60, maxAttempts=1),
            attempt=attempt(**STARTING, troubles=(PULL,)),
            previous=status(record()),
        ),
        phase="Failed",
        reason="ImagePullFailed",
        does=(DeleteAttempt(number=1),),
        about=("Succeeded", "False", "AttemptsExhausted"),
    ),
    "a trainer at work is left alone": Case(
        seen=seen(attempt=attempt(), previous=status(record())),
        phase="Running",
        reason="Training",
        about=("ClusterReady", "True", "PodsRunning"),
        waits=False,
    ),
    "a worker that is gone is told beside the training": Case(
        seen=seen(attempt=attempt(troubles=(PULL,)), previous=status(record())),
        phase="Running",
        reason="Training",
        about=("ClusterReady", "False", "ImagePullFailed"),
    ),
    "an outage does not disturb training": Case(
        seen=seen(attempt=attempt(), previous=status(record()), outage=AWAY),
        phase="Running",
        reason="Training",
    ),
    "an attempt that nobody wrote down is taken over": Case(
        seen=seen(attempt=attempt(4)), phase="Running", reason="Training"
    ),
    "a head that is gone ends the attempt": Case(
        seen=seen(attempt=attempt(head_lost=True), previous=status(record())),
        phase="Pending",
        reason="BackingOff",
        does=(DeleteAttempt(number=1),),
        waits=True,
    ),
    "a run that takes too long is stopped": Case(
        seen=seen(run_with(activeDeadlineSeconds=60), attempt=attempt(), previous=status(record())),
        phase="Failed",
        reason="DeadlineExceeded",
        does=(DeleteAttempt(number=1),),
        about=("Succeeded", "False", "DeadlineExceeded"),
    ),
    "a run that has time left is looked at in time": Case(
        seen=seen(run_with(activeDeadlineSeconds=90), attempt=attempt(), previous=status(record())),
        phase="Running",
        reason="Training",
        waits=True,
    ),
    "time that is over counts towards the deadline": Case(
        seen=seen(
            run_with(activeDeadlineSeconds=100),
            attempt=attempt(),
            previous=status(record(), active_seconds=40),
        ),
        phase="Failed",
        reason="DeadlineExceeded",
        does=(DeleteAttempt(number=1),),
    ),
    "an attempt that somebody deletes is waited for": Case(
        seen=seen(attempt=attempt(deleting=True), previous=status(record())),
        phase="Pending",
        reason="Waiting",
        waits=True,
    ),
    "an attempt that vanished is started again": Case(
        seen=seen(previous=status(record(2))), phase="Pending", reason="ClusterStarting", does=(start(2),)
    ),
    "an attempt that vanished behind an older one is started again": Case(
        seen=seen(attempt=failed(1), previous=status(record(1, "Failed", reason="HeadLost"), record(2))),
        phase="Pending",
        reason="ClusterStarting",
        does=(start(2),),
    ),
    "of two attempts that live the older one goes": Case(
        seen=seen(attempt=attempt(2), earlier=(attempt(1),), previous=status(record(1, "Failed"), record(2))),
        phase="Running",
        reason="Training",
        does=(DeleteAttempt(number=1),),
    ),
    # --- pauses and queues ---
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
    # --- an attempt that ended ---
    "a trainer that said why it cannot go on": Case(
        seen=seen(attempt=failed(failure=DIVERGED), previous=status(record())),
        phase="Failed",
        reason="Diverged",
        does=(RemoveFinalizer(),),
        about=("Trained", "False", "Diverged"),
    ),
    "a trainer that told only MLflow why": Case(
        seen=seen(
            attempt=failed(),
            previous=status(record()),
            tracked=TrackedRun(run_id="r", artifact_uri="a", failure=DIVERGED),
        ),
        phase="Failed",
        reason="Diverged",
        does=(RemoveFinalizer(),),
    ),
    "a trouble that may pass is waited out": Case(
        seen=seen(attempt=failed(failure=LOST), previous=status(record())),
        phase="Pending",
        reason="BackingOff",
        about=("Trained", "Unknown", "BackingOff"),
        waits=True,
    ),
    "a back-off lasts": Case(
        seen=seen(attempt=failed(), previous=status(record(1, "Failed", ended=29, reason="WorkerLost"))),
        phase="Pending",
        reason="BackingOff",
        waits=True,
    ),
    "a back-off ends": Case(
        seen=seen(attempt=failed(), previous=status(record(1, "Failed", ended=30, reason="WorkerLost"))),
        phase="Pending",
        reason="ClusterStarting",
        does=(start(2),),
    ),
    "a back-off ends while MLflow is away": Case(
        seen=seen(
            attempt=failed(), previous=status(record(1, "Failed", ended=30, reason="WorkerLost")), outage=AWAY
        ),
        phase="Pending",
        reason="TrackingUnreachable",
        waits=True,
    ),
    "a back-off ends before the last pods are gone": Case(
        seen=seen(
            attempt=failed(live_pods=1), previous=status(record(1, "Failed", ended=30, reason="WorkerLost"))
        ),
        phase="Pending",
        reason="Waiting",
        waits=True,
    ),
    "a pause during a back-off": Case(
        seen=seen(
            run_with(suspend=True),
            attempt=failed(),
            previous=status(record(1, "Failed", ended=1, reason="WorkerLost")),
        ),
        phase="Suspended",
        reason="Suspended",
    ),
    "the last attempt that was allowed failed": Case(
        seen=seen(
            run_with(maxAttempts=2),
            attempt=failed(2),
            previous=status(record(1, "Failed", reason="HeadLost"), record(2)),
        ),
        phase="Failed",
        reason="TrainerDied",
        does=(RemoveFinalizer(),),
        about=("Succeeded", "False", "AttemptsExhausted"),
    ),
    "an interruption is no failure": Case(
        seen=seen(run_with(maxAttempts=1), attempt=failed(failure=SAVED), previous=status(record())),
        phase="Pending",
        reason="BackingOff",
        waits=True,
    ),
    "a run without time left is not tried again": Case(
        seen=seen(
            run_with(activeDeadlineSeconds=60), attempt=failed(failure=LOST), previous=status(record())
        ),
        phase="Failed",
        reason="DeadlineExceeded",
        does=(RemoveFinalizer(),),
    ),
    "an attempt that ended is explained only once MLflow answers": Case(
        seen=seen(attempt=failed(), previous=status(record()), outage=AWAY),
        phase="Running",
        reason="TrackingUnreachable",
        waits=True,
    ),
    "a trainer that spoke needs no MLflow": Case(
        seen=seen(attempt=failed(failure=DIVERGED), previous=status(record()), outage=AWAY),
        phase="Failed",
        reason="Diverged",
        does=(RemoveFinalizer(),),
    ),
    "a success without a family is tried again": Case(
        seen=seen(attempt=succeeded(), previous=status(record())),
        phase="Pending",
        reason="BackingOff",
        waits=True,
    ),
    "an attempt that ran out of memory is tried again with more": Case(
        seen=seen(
            run_with(maxMemory="4Gi"),
            attempt=failed(),
            previous=status(record(1, "Failed", ended=30, reason="OutOfMemory")),
        ),
        phase="Pending",
        reason="ClusterStarting",
        does=(start(2, Memory(worker=3 * GIB, head=4 * GIB)),),
    ),
    # --- a family ---
    "a family is registered": Case(
        seen=seen(attempt=succeeded(), previous=status(record()), family="family"),  # type: ignore[arg-type]
        phase="Running",
        reason="Registering",
        does=(RegisterMembers(family="family"),),  # type: ignore[arg-type]
        about=("Registered", "Unknown", "Registering"),
    ),
    "a family is registered whatever the job says": Case(
        seen=seen(attempt=failed(), previous=status(record()), family="family"),  # type: ignore[arg-type]
        phase="Running",
        reason="Registering",
        does=(RegisterMembers(family="family"),),  # type: ignore[arg-type]
    ),
    "a family is registered although the run is paused": Case(
        seen=seen(
            run_with(suspend=True),
            attempt=failed(),
            previous=status(record(1, "Interrupted", reason="Suspended")),
            family="family",
        ),
        phase="Running",
        reason="Registering",
        does=(RegisterMembers(family="family"),),  # type: ignore[arg-type]
    ),
    "a registration is tried again while MLflow is away": Case(
        seen=seen(attempt=succeeded(), previous=status(record()), family="family", outage=AWAY),
        phase="Running",
        reason="TrackingUnreachable",
        does=(RegisterMembers(family="family"),),  # type: ignore[arg-type]
        about=("Registered", "False", "TrackingUnreachable"),
        waits=True,
    ),
    "a refused registration is told and tried again": Case(
        seen=seen(attempt=succeeded(), previous=status(record()), family="family", outage=REFUSED),
        phase="Running",
        reason="RegistrationFailed",
        does=(RegisterMembers(family="family"),),  # type: ignore[arg-type]
        about=("Registered", "False", "RegistrationFailed"),
        waits=True,
    ),
    "a model that is damaged in the store is told and tried again": Case(
        seen=seen(
            attempt=succeeded(),
            previous=status(record()),
            family="family",
            outage=replace(REFUSED, damaged=True),
        ),
        phase="Running",
        reason="BundleDamaged",
        does=(RegisterMembers(family="family"),),  # type: ignore[arg-type]
        about=("Registered", "False", "BundleDamaged"),
        waits=True,
    ),
    "a registered family is the end": Case(
        seen=seen(attempt=succeeded(), previous=status(record()), family="family", registrations="all"),
        phase="Succeeded",
        reason="Complete",
        does=(RemoveFinalizer(),),
        about=("Succeeded", "True", "Complete"),
        waits=False,
    ),
    # --- the end ---
    "a finished run stays finished": Case(
        seen=seen(previous=FINISHED, finalizer=False), phase="Succeeded", reason="", waits=False
    ),
    "a failed run stays failed, whatever is asked of it": Case(
        seen=seen(run_with(suspend=True), previous=GIVEN_UP, finalizer=False), phase="Failed", reason=""
    ),
    "a failed run is not started again by a spec that could": Case(
        seen=seen(run_with(maxAttempts=9), attempt=failed(), previous=GIVEN_UP),
        phase="Failed",
        reason="",
        does=(RemoveFinalizer(),),
    ),
    "what still lives of a failed run is stopped": Case(
        seen=seen(attempt=attempt(), previous=GIVEN_UP),
        phase="Failed",
        reason="",
        does=(DeleteAttempt(number=1),),
        waits=True,
    ),
    "what is being stopped of a failed run is waited for": Case(
        seen=seen(attempt=attempt(deleting=True), previous=GIVEN_UP), phase="Failed", reason="", waits=True
    ),
    "a finished run with a time to live is looked at in time": Case(
        seen=seen(run_with(ttlSecondsAfterFinished=101), previous=FINISHED, finalizer=False),
        phase="Succeeded",
        reason="",
        waits=True,
    ),
    "a finished run whose time is over goes": Case(
        seen=seen(run_with(ttlSecondsAfterFinished=100), previous=FINISHED, finalizer=False),
        phase="Succeeded",
        reason="",
        does=(DeleteRun(),),
    ),
    # --- deletion ---
    "a run that was never started goes at once": Case(
        seen=seen(deleting=True), phase="Pending", reason="Deleting", does=(RemoveFinalizer(),)
    ),
    "the job of a deleted run is stopped first": Case(
        seen=seen(deleting=True, attempt=attempt(), previous=status(record(), phase="Running")),
        phase="Running",
        reason="Deleting",
        does=(DeleteAttempt(number=1),),
        waits=True,
    ),
    "a job that has ended goes with its run, too": Case(
        seen=seen(deleting=True, attempt=succeeded(), previous=FINISHED),
        phase="Succeeded",
        reason="",
        does=(DeleteAttempt(number=1),),
    ),
    "every attempt of a deleted run goes": Case(
        seen=seen(deleting=True, attempt=attempt(2), earlier=(failed(1),)),
        phase="Pending",
        reason="Deleting",
        does=(DeleteAttempt(number=1), DeleteAttempt(number=2)),
    ),
    "a deleted run waits until its job is stopped": Case(
        seen=seen(deleting=True, attempt=attempt(deleting=True, stopping_since=ago(10))),
        phase="Pending",
        reason="Deleting",
        waits=True,
    ),
    "a deleted run does not wait for a KubeRay that is away": Case(
        seen=seen(
            deleting=True,
            attempt=attempt(deleting=True, stopping_since=NOW - DELETION_GRACE - timedelta(seconds=1)),
        ),
        phase="Pending",
        reason="Deleting",
        does=(RemoveFinalizer(),),
    ),
    "a deleted run whose finalizer somebody took goes": Case(
        seen=seen(deleting=True, finalizer=False, attempt=attempt()), phase="Pending", reason="Deleting"
    ),
    "a deleted run is not registered any more": Case(
        seen=seen(deleting=True, previous=status(record(1, "Succeeded"), phase="Running"), family="family"),
        phase="Running",
        reason="Deleting",
        does=(RemoveFinalizer(),),
    ),
}


def completed(observed: Observed, family: Family, registered: tuple[Registration, ...]) -> Observed:
    """With the family and the registrations that a case only names."""
    return replace(
        observed,
        family=family if observed.family is not None else None,
        registrations=registered if observed.registrations else (),
    )


def named(action: Action, family: Family) -> Action:
    return RegisterMembers(family=family) if isinstance(action, RegisterMembers) else action


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_state_leads_to_one_decision(
    case: Case, family: Family, registered: tuple[Registration, ...]
) -> None:
    observed = completed(case.seen, family, registered)

    decision = plan(observed, now=NOW)

    assert decision.actions == tuple(named(action, family) for action in case.does)
    assert (decision.status.phase, decision.status.reason) == (case.phase, case.reason)
    if case.about is not None:
        kind, truth, reason = case.about
        told = {c.type: (c.status, c.reason) for c in decision.status.conditions}
        assert told[kind] == (truth, reason)
    if case.waits is not None:
        assert (decision.requeue_after is not None) is case.waits
    assert decision.requeue_after is None or decision.requeue_after >= 0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_status_survives_being_written_and_read(
    case: Case, family: Family, registered: tuple[Registration, ...]
) -> None:
    decided = plan(completed(case.seen, family, registered), now=NOW).status
    assert CompressionRunStatus.model_validate_json(decided.model_dump_json(by_alias=True)) == decided
    types = [condition.type for condition in decided.conditions]
    order = [kind for kind in ConditionType if kind in types]
    assert types == order
    for condition in decided.conditions:
        Reason(condition.reason)


# --- every state of a RayJob ---

JOB_STATES = [
    # job status, deployment status, reason → whether it lives, the record's reason when it does not
    ("", "", "", True, None),
    ("", "Initializing", "", True, None),
    ("PENDING", "Running", "", True, None),
    ("RUNNING", "Running", "", True, None),
    ("SUCCEEDED", "Running", "", True, None),
    ("FAILED", "Running", "", True, None),
    ("", "Waiting", "", True, None),
    ("RUNNING", "Suspending", "", True, None),
    ("", "Suspended", "", True, None),
    ("", "Retrying", "", True, None),
    ("SUCCEEDED", "Complete", "", False, "TrainerDied"),
    ("STOPPED", "Complete", "", False, "Cancelled"),
    ("FAILED", "Failed", "AppFailed", False, "TrainerDied"),
    ("", "Failed", "SubmissionFailed", False, "SubmissionFailed"),
    ("RUNNING", "Failed", "DeadlineExceeded", False, "DeadlineExceeded"),
    ("", "Failed", "PreRunningDeadlineExceeded", False, "Unschedulable"),
    ("RUNNING", "Failed", "JobStatusCheckTimeoutExceeded", False, "HeadLost"),
    ("FAILED", "Failed", "JobDeploymentStatusTransitionGracePeriodExceeded", False, "SubmissionFailed"),
    ("SUCCEEDED", "Failed", "JobDeploymentStatusTransitionGracePeriodExceeded", False, "TrainerDied"),
    ("", "Failed", "SomethingNew", False, "TrainerDied"),
    ("", "ValidationFailed", "ValidationFailed", False, "RayJobInvalid"),
]


@pytest.mark.parametrize(("job", "deployment", "reason", "lives", "ended_by"), JOB_STATES)
def test_every_state_of_a_rayjob_has_one_meaning(
    job: str, deployment: str, reason: str, lives: bool, ended_by: str | None
) -> None:
    from ireko_operator.reconcile.attempt_ends import is_live

    state = {"job_status": job, "deployment_status": deployment, "reason": reason, "live_pods": 0}
    assert is_live(view(**state)) is lives

    decision = plan(seen(attempt=attempt(alive=lives, **state), previous=status(record())), now=NOW)

    (told,) = decision.status.attempts
    assert told.reason == (ended_by or "")
    assert (told.outcome == "Running") is lives
    assert not any(isinstance(action, StartAttempt) for action in decision.actions)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"out_of_memory": True}, "OutOfMemory"),
        ({"out_of_memory": True, "failure": LOST}, "OutOfMemory"),
        ({"out_of_memory": True, "failure": DIVERGED}, "Diverged"),
        ({"head_lost": True}, "HeadLost"),
        ({"message": "Ray head pod not found."}, "HeadLost"),
        ({"message": "Submitter completed but Ray job not found in RayCluster."}, "HeadLost"),
        ({"failure": SAVED}, "Interrupted"),
    ],
)
def test_what_is_known_besides_explains_a_failure(changes: dict[str, Any], reason: str) -> None:
    decision = plan(seen(attempt=failed(**changes), previous=status(record())), now=NOW)
    assert decision.status.attempts[0].reason == reason


# --- what is said ---


def test_the_sentence_of_a_back_off_has_the_trouble_and_the_time() -> None:
    decision = plan(seen(attempt=failed(failure=LOST), previous=status(record())), now=NOW)
    trained = next(c for c in decision.status.conditions if c.type == "Trained")
    assert trained.message == (
        "Attempt 1 ended by WorkerLost; the next one starts at 12:00:30 UTC. Workers died."
    )
    assert decision.requeue_after == 30


def test_the_pod_template_refusal_names_every_path() -> None:
    template = {"spec": {"hostNetwork": True, "volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}
    decision = plan(seen(run_with(podTemplate=template)), now=NOW)
    message = decision.status.conditions[0].message
    assert "spec.compute.podTemplate.spec.hostNetwork must not be true (exception HostNamespaces)" in message
    assert "spec.compute.podTemplate.spec.volumes[x].hostPath must not be set (exception HostPath)" in message


def test_the_last_of_several_failures_says_how_many_there_were() -> None:
    decision = plan(
        seen(
            run_with(maxAttempts=2),
            attempt=failed(2, failure=LOST),
            previous=status(record(1, "Failed", reason="HeadLost"), record(2)),
        ),
        now=NOW,
    )
    assert decision.status.conditions[-1].message == "All 2 attempts failed. The last one: Workers died."


def test_a_started_attempt_is_written_down_with_its_job_and_its_memory() -> None:
    (told,) = plan(seen(), now=NOW).status.attempts
    assert (told.number, told.outcome, told.memory, told.started_at) == (1, "Running", "2Gi", NOW)
    assert told.ray_job.startswith("demo-")
    assert told.ray_job.endswith("-1")


def test_an_attempt_that_is_taken_over_began_when_its_job_did() -> None:
    (told,) = plan(seen(attempt=attempt(4)), now=NOW).status.attempts
    assert (told.number, told.started_at, told.ray_job) == (4, ago(60), "demo-abc123-4")


def test_members_are_counted_for_people(family: Family, registered: tuple[Registration, ...]) -> None:
    observed = seen(attempt=succeeded(), previous=status(record()), family=family)
    assert plan(observed, now=NOW).status.registered == "0/2"
    assert plan(replace(observed, registrations=registered[:1]), now=NOW).status.registered == "1/2"


def test_a_changed_time_to_live_is_seen(family: Family) -> None:
    run = run_with(ttlSecondsAfterFinished=500)
    run = run.model_copy(update={"metadata": run.metadata.model_copy(update={"generation": 7})})
    decision = plan(seen(run, previous=FINISHED, finalizer=False), now=NOW)
    assert decision.status.observed_generation == 7
    assert decision.requeue_after == 400


# --- time that counts ---


def test_a_pause_does_not_count_towards_the_deadline() -> None:
    run = run_with(activeDeadlineSeconds=100, suspend=True)
    paused = plan(seen(run, attempt=attempt(), previous=status(record())), now=NOW).status
    assert (paused.active_seconds, paused.active_since) == (60, None)

    later = NOW + timedelta(hours=5)
    resumed = plan(
        seen(run_with(activeDeadlineSeconds=100), attempt=attempt(**SUSPENDED), previous=paused), now=later
    ).status
    assert (resumed.active_seconds, resumed.active_since) == (60, later)

    going_on = seen(run_with(activeDeadlineSeconds=100), attempt=attempt(), previous=resumed)
    assert plan(going_on, now=later + timedelta(seconds=39)).status.phase == "Running"
    assert plan(going_on, now=later + timedelta(seconds=40)).status.reason == "DeadlineExceeded"


def test_the_time_in_a_queue_counts_towards_no_deadline() -> None:
    run = run_with(queueName="gpus", activeDeadlineSeconds=10, pendingDeadlineSeconds=10)
    begun = plan(seen(run), now=NOW).status
    assert begun.active_since is None

    later = NOW + timedelta(hours=5)
    waiting = seen(run, attempt=attempt(**QUEUED, workload=PENDING), previous=begun)
    assert plan(waiting, now=later).actions == ()

    through = seen(run, attempt=attempt(**STARTING, workload=ADMITTED), previous=begun)
    assert plan(through, now=later).status.active_since == later


def test_a_resumed_attempt_has_its_whole_time_to_start_again() -> None:
    run = run_with(pendingDeadlineSeconds=100)
    resumed = plan(
        seen(run, attempt=attempt(**SUSPENDED), previous=status(record(), active_since=None)), now=NOW
    ).status
    starting = seen(run, attempt=attempt(**STARTING), previous=resumed)
    assert plan(starting, now=NOW + timedelta(seconds=99)).status.reason == "ClusterStarting"
    assert plan(starting, now=NOW + timedelta(seconds=100)).status.reason == "BackingOff"


# --- a manifest that cannot be read ---


def unreadable(**changes: Any) -> Unreadable:
    return Unreadable(
        **{
            "problems": ("spec.seed: too large",),
            "generation": 3,
            "deleting": False,
            "finalizer": True,
            **changes,
        }
    )


def test_a_manifest_that_cannot_be_read_is_told() -> None:
    decision = plan_unreadable(unreadable(), now=NOW)
    assert decision.actions == ()
    assert [(c.type, c.status, c.reason) for c in decision.status.conditions] == [
        ("Valid", "False", "InvalidSpec"),
        ("Succeeded", "Unknown", "InProgress"),
    ]
    assert decision.status.conditions[0].message == (
        "This operator cannot read the manifest: spec.seed: too large"
    )
    again = plan_unreadable(unreadable(previous=decision.status), now=NOW + timedelta(hours=1))
    assert again.status == decision.status


def test_a_run_whose_manifest_cannot_be_read_can_be_deleted() -> None:
    living: tuple[Attempt, ...] = (attempt(),)
    assert plan_unreadable(unreadable(deleting=True, attempts=living), now=NOW).actions == (
        DeleteAttempt(number=1),
    )
    assert plan_unreadable(unreadable(deleting=True), now=NOW).actions == (RemoveFinalizer(),)


def test_a_finished_run_stays_finished_when_its_manifest_cannot_be_read_any_more() -> None:
    assert plan_unreadable(unreadable(previous=FINISHED), now=NOW).status == FINISHED


def test_the_name_of_an_attempt_follows_from_the_run() -> None:
    from ireko_operator.launch.rayjob import attempt_name

    (told,) = plan(seen(), now=NOW).status.attempts
    assert told.ray_job == attempt_name(run="demo", uid=UID, number=1)


@pytest.mark.parametrize(
    ("workload", "sentence"),
    [
        (None, "Attempt 1 waits in the queue gpus; Kueue has not taken it up yet."),
        (WorkloadView(state="Pending"), "Attempt 1 waits in the queue gpus."),
        (PENDING, "Attempt 1 waits in the queue gpus (Pending): Waiting for quota."),
        (
            EVICTED,
            "Attempt 1 lost its place and waits in the queue gpus (Preempted): Preempted by another.",
        ),
    ],
    ids=str,
)
def test_the_queue_is_quoted(workload: WorkloadView | None, sentence: str) -> None:
    waiting = attempt(**QUEUED, workload=workload)
    decision = plan(
        seen(run_with(queueName="gpus"), attempt=waiting, previous=status(record(), active_since=None)),
        now=NOW,
    )
    assert decision.status.conditions[-1].message == sentence


def test_a_reason_of_another_release_is_no_obstacle() -> None:
    last = record(1, "Failed", reason="FromTheFuture", message="Something else happened.")
    decision = plan(seen(run_with(maxAttempts=1), attempt=failed(), previous=status(last)), now=NOW)
    assert (decision.status.phase, decision.status.reason) == ("Failed", "Failed")
    assert decision.status.conditions[-1].message == "Something else happened."
