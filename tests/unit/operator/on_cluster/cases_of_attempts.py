"""Decisions about a run that starts, and while an attempt lives."""

from __future__ import annotations

from dataclasses import replace

from cluster_runs import NOW, PLATFORM, ago, attempt, failed, record, run_with, seen, status
from decision_case import AWAY, PULL, QUOTA, STARTING, Case, start

from ireko_operator.launch.platform import Platform
from ireko_operator.reconcile.starting import REFUSAL_RETRY
from ireko_operator.reconcile.state import DeleteAttempt, EnsureFinalizer, Refusal

STARTS = {
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
}

LIVES = {
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
}
