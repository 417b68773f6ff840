"""How the objects of an attempt are read; what is written is tested against a real API server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ireko_api.handoff import Failure
from ireko_api.reasons import Reason
from ireko_operator.kube.cache import Cache
from ireko_operator.kube.client import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
    UnavailableError,
)
from ireko_operator.kube.objects import workload_object
from ireko_operator.launch import Attempt, ClusterView
from ireko_operator.launch.kuberay import RayJobLauncher, Traces, refusal_of, workload_view
from ireko_operator.launch.platform import Platform

KEY = ("models", "demo")
TRAINING = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
LABELS = {"ireko.dev/run": "demo", "ireko.dev/run-uid": "run-1", "ireko.dev/attempt": "1"}


class Seen:
    """A cache with one run, one RayJob and the pods that a test puts there."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.traces = Traces()
        self.now = TRAINING + timedelta(minutes=10)
        self.version = 10
        self.put("compressionruns", "demo", "run-1", spec={})

    def put(self, kind: str, name: str, uid: str, *, event: str = "MODIFIED", **content: Any) -> None:
        self.version += 1
        metadata = {"name": name, "namespace": "models", "uid": uid, "resourceVersion": str(self.version)}
        metadata |= content.pop("metadata", {})
        self.cache.observe(kind, event, {"metadata": metadata, **content})

    def job(self, state: str = "Running", *, suspend: bool = False, **status: Any) -> None:
        owner = {"uid": "run-1", "controller": True}
        self.put(
            "rayjobs",
            "demo-1",
            "job-1",
            metadata={"labels": LABELS, "ownerReferences": [owner]},
            spec={"suspend": suspend},
            status={
                "jobDeploymentStatus": state,
                "rayClusterName": "demo-1-x",
                "rayJobInfo": {"startTime": "2026-05-04T12:00:00Z"},
                **status,
            },
        )

    def head(self, uid: str = "head-1", *, created: datetime = TRAINING, **changes: Any) -> None:
        metadata = {
            "labels": LABELS | {"ray.io/cluster": "demo-1-x", "ray.io/node-type": "head"},
            "creationTimestamp": created.isoformat(),
            **changes.pop("metadata", {}),
        }
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], **changes}
        self.put("pods", "demo-1-head", uid, metadata=metadata, status=status)

    def no_head(self) -> None:
        self.put("pods", "demo-1-head", "head-1", event="DELETED", metadata={"labels": LABELS})

    def attempts(self) -> tuple[Attempt, ...]:
        snapshot = self.cache.snapshot(KEY)
        assert snapshot is not None
        launcher = RayJobLauncher(
            client=None,  # type: ignore[arg-type]  # looking writes nothing
            cache=self.cache,
            snapshot=snapshot,
            run=None,
            platform=Platform(),
            traces=self.traces,
            now=self.now,
        )
        return launcher.attempts()

    def view(self) -> ClusterView:
        (attempt,) = self.attempts()
        assert attempt.cluster is not None
        return attempt.cluster


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_an_attempt_is_seen_with_its_pods(seen: Seen) -> None:
    seen.job()
    seen.head()
    view = seen.view()
    assert (view.ray_job, view.ray_cluster, view.deployment_status) == ("demo-1", "demo-1-x", "Running")
    assert (view.ready_pods, view.live_pods) == (1, 1)
    assert not view.head_lost


def test_the_trainers_last_word_is_read_from_the_jobs_message(seen: Seen) -> None:
    failure = Failure(reason="Diverged", message="The loss is NaN.")
    seen.job("Failed", message=f"failed\n{failure.to_line()}")
    (attempt,) = seen.attempts()
    assert attempt.failure == failure
    assert not attempt.alive


@pytest.mark.parametrize(
    "loss",
    ["gone", "another", "deleting", "crashed"],
)
def test_a_head_that_the_trainer_ran_in_and_that_goes_is_lost(seen: Seen, loss: str) -> None:
    seen.job()
    seen.head()
    assert not seen.view().head_lost
    if loss == "gone":
        seen.no_head()
    elif loss == "another":
        seen.no_head()
        seen.head("head-2", created=TRAINING + timedelta(minutes=5))
    elif loss == "deleting":
        seen.head(metadata={"deletionTimestamp": "2026-05-04T12:09:00Z"})
    else:
        ended = {"exitCode": 137, "finishedAt": "2026-05-04T12:08:00Z"}
        container = {"name": "trainer", "state": {"running": {}}, "lastState": {"terminated": ended}}
        seen.head(containerStatuses=[container])
    assert seen.view().head_lost
    assert seen.view().head_lost, "it stays lost"


def test_a_new_operator_sees_that_the_head_is_younger_than_the_training(seen: Seen) -> None:
    seen.job()
    seen.head("head-2", created=TRAINING + timedelta(minutes=5))
    assert seen.view().head_lost


def test_a_head_whose_node_has_another_clock_is_not_lost(seen: Seen) -> None:
    seen.job()
    seen.head(created=TRAINING + timedelta(seconds=30))
    assert not seen.view().head_lost


def test_nothing_is_lost_while_pods_were_not_seen_or_are_taken_away_on_purpose(seen: Seen) -> None:
    seen.job()
    assert not seen.view().head_lost
    seen.head()
    assert not seen.view().head_lost
    seen.job("Suspending", suspend=True)
    seen.no_head()
    assert not seen.view().head_lost
    seen.job(rayClusterName="demo-1-y")
    assert not seen.view().head_lost


def test_memory_that_killed_a_container_is_remembered_when_its_pod_is_gone(seen: Seen) -> None:
    seen.job()
    ended = {"reason": "OOMKilled", "exitCode": 137}
    container = {"name": "trainer", "state": {"running": {}}, "lastState": {"terminated": ended}}
    seen.head(containerStatuses=[container])
    seen.no_head()
    assert seen.view().out_of_memory


def test_an_attempt_lives_until_its_last_pod_is_gone(seen: Seen) -> None:
    seen.job()
    seen.head(metadata={"deletionTimestamp": (seen.now + timedelta(seconds=120)).isoformat()})
    seen.put("rayjobs", "demo-1", "job-1", event="DELETED", metadata={"labels": LABELS})
    (attempt,) = seen.attempts()
    assert attempt.alive
    assert attempt.cluster is not None
    assert attempt.cluster.deleting
    assert attempt.cluster.live_pods == 1
    seen.no_head()
    assert seen.attempts() == ()


def test_a_pod_of_a_lost_node_is_not_waited_for_forever(seen: Seen) -> None:
    seen.job()
    seen.head(metadata={"deletionTimestamp": seen.now.isoformat()})
    assert seen.view().live_pods == 1
    seen.now += timedelta(seconds=61)
    assert seen.view().live_pods == 0


@pytest.mark.parametrize(
    ("conditions", "state", "reason"),
    [
        ([], "Pending", ""),
        ([("QuotaReserved", "False", "WaitingForQuota")], "Pending", "WaitingForQuota"),
        ([("QuotaReserved", "True", "QuotaReserved")], "Pending", ""),
        (
            [("QuotaReserved", "True", "QuotaReserved"), ("Admitted", "True", "Admitted")],
            "Admitted",
            "Admitted",
        ),
        (
            [
                ("QuotaReserved", "False", "Pending"),
                ("Evicted", "True", "Preempted"),
                ("Preempted", "True", "InClusterQueue"),
            ],
            "Evicted",
            "InClusterQueue",
        ),
        ([("Evicted", "True", "PodsReadyTimeout")], "Evicted", "PodsReadyTimeout"),
        # Between the eviction and the end of its pods.
        ([("Admitted", "True", "Admitted"), ("Evicted", "True", "Deactivated")], "Evicted", "Deactivated"),
        (
            [
                ("Evicted", "False", "QuotaReserved"),
                ("Preempted", "False", "QuotaReserved"),
                ("Admitted", "True", "Admitted"),
            ],
            "Admitted",
            "Admitted",
        ),
        ([("Admitted", "True", "Admitted"), ("Finished", "True", "JobFinished")], "Finished", "JobFinished"),
    ],
)
def test_where_a_job_stands_in_its_queue(
    conditions: list[tuple[str, str, str]], state: str, reason: str
) -> None:
    load = workload_object(
        {
            "metadata": {"name": "w", "namespace": "models", "uid": "w", "resourceVersion": "1"},
            "status": {
                "conditions": [
                    {"type": kind, "status": status, "reason": why, "message": f"said of {kind}"}
                    for kind, status, why in conditions
                ]
            },
        }
    )
    view = workload_view([load])
    assert view is not None
    assert (view.state, view.reason) == (state, reason)


def test_a_job_without_a_workload_is_in_no_queue() -> None:
    assert workload_view([]) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotFoundError("404 page not found", code=404), Reason.KUBERAY_MISSING),
        (ForbiddenError("exceeded quota: small, requested: count/rayjobs.ray.io=1"), Reason.QUOTA_EXCEEDED),
        (InvalidError("spec.rayClusterSpec: Required value"), Reason.POD_REFUSED),
        (NotFoundError('namespaces "x" not found', code=404, reason="NotFound"), None),
        (UnavailableError("etcdserver: request timed out"), None),
        (ConflictError("somebody else was faster"), None),
    ],
)
def test_what_the_api_server_refuses_for_good_becomes_a_trouble(
    error: KubeError, reason: Reason | None
) -> None:
    trouble = refusal_of(error)
    assert (trouble.reason if trouble else None) is reason
