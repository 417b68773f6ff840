"""Decisions about an attempt that ended, a family that waits to be registered, and a run that is over or deleted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from cluster_runs import NOW, ago, attempt, failed, record, run_with, seen, status, succeeded
from decision_case import AWAY, DIVERGED, FAMILY, FINISHED, GIB, GIVEN_UP, LOST, REFUSED, SAVED, Case, start

from ireko_operator.launch import Memory
from ireko_operator.reconcile.on_cluster import DELETION_GRACE
from ireko_operator.reconcile.state import (
    DeleteAttempt,
    DeleteRun,
    RegisterMembers,
    RemoveFinalizer,
    TrackedRun,
)

ENDED = {
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
}

FAMILIES = {
    "a family is registered": Case(
        seen=seen(attempt=succeeded(), previous=status(record()), family=FAMILY),
        phase="Running",
        reason="Registering",
        does=(RegisterMembers(family=FAMILY),),
        about=("Registered", "Unknown", "Registering"),
    ),
    "a family is registered whatever the job says": Case(
        seen=seen(attempt=failed(), previous=status(record()), family=FAMILY),
        phase="Running",
        reason="Registering",
        does=(RegisterMembers(family=FAMILY),),
    ),
    "a family is registered although the run is paused": Case(
        seen=seen(
            run_with(suspend=True),
            attempt=failed(),
            previous=status(record(1, "Interrupted", reason="Suspended")),
            family=FAMILY,
        ),
        phase="Running",
        reason="Registering",
        does=(RegisterMembers(family=FAMILY),),
    ),
    "a registration is tried again while MLflow is away": Case(
        seen=seen(attempt=succeeded(), previous=status(record()), family=FAMILY, outage=AWAY),
        phase="Running",
        reason="TrackingUnreachable",
        does=(RegisterMembers(family=FAMILY),),
        about=("Registered", "False", "TrackingUnreachable"),
        waits=True,
    ),
    "a refused registration is told and tried again": Case(
        seen=seen(attempt=succeeded(), previous=status(record()), family=FAMILY, outage=REFUSED),
        phase="Running",
        reason="RegistrationFailed",
        does=(RegisterMembers(family=FAMILY),),
        about=("Registered", "False", "RegistrationFailed"),
        waits=True,
    ),
    "a model that is damaged in the store is told and tried again": Case(
        seen=seen(
            attempt=succeeded(),
            previous=status(record()),
            family=FAMILY,
            outage=replace(REFUSED, damaged=True),
        ),
        phase="Running",
        reason="BundleDamaged",
        does=(RegisterMembers(family=FAMILY),),
        about=("Registered", "False", "BundleDamaged"),
        waits=True,
    ),
    "a registered family is the end": Case(
        seen=seen(attempt=succeeded(), previous=status(record()), family=FAMILY, registrations="all"),
        phase="Succeeded",
        reason="Complete",
        does=(RemoveFinalizer(),),
        about=("Succeeded", "True", "Complete"),
        waits=False,
    ),
}

OVER = {
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
}

DELETIONS = {
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
        seen=seen(deleting=True, previous=status(record(1, "Succeeded"), phase="Running"), family=FAMILY),
        phase="Running",
        reason="Deleting",
        does=(RemoveFinalizer(),),
    ),
}
