"""The state machine of a run on a cluster as a table: what is seen, what is done, what is said."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cases_of_attempts import LIVES, STARTS
from cases_of_ends import DELETIONS, ENDED, FAMILIES, OVER
from cases_of_pauses import PAUSES
from cluster_runs import (
    NOW,
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
from decision_case import (
    ADMITTED,
    DIVERGED,
    EVICTED,
    FINISHED,
    LOST,
    PENDING,
    QUEUED,
    SAVED,
    STARTING,
    SUSPENDED,
    Case,
)

from ireko_api.handoff import Family
from ireko_api.reasons import ConditionType, Reason
from ireko_api.status import CompressionRunStatus
from ireko_operator.launch import Attempt, WorkloadView
from ireko_operator.reconcile.plan import plan, plan_unreadable
from ireko_operator.reconcile.state import (
    Action,
    DeleteAttempt,
    Observed,
    RegisterMembers,
    Registration,
    RemoveFinalizer,
    StartAttempt,
    Unreadable,
)

CASES = {**STARTS, **LIVES, **PAUSES, **ENDED, **FAMILIES, **OVER, **DELETIONS}


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
