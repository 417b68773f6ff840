from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ireko_operator.kube.cache import Cache
from ireko_operator.kube.keys import Kind

KEY = ("models", "demo")


def body(
    name: str,
    *,
    uid: str,
    version: int,
    labels: dict[str, str] | None = None,
    owner: str | None = None,
    **content: Any,
) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "models",
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-05-04T12:00:00Z",
            "labels": labels or {},
            "ownerReferences": [{"uid": owner, "controller": True, "kind": "X", "name": "x"}]
            if owner
            else [],
        },
        **content,
    }


def run(version: int = 1, *, uid: str = "run-1", **content: Any) -> dict[str, Any]:
    return body("demo", uid=uid, version=version, spec={"seed": 1}, **content)


def job(
    version: int = 2,
    *,
    uid: str = "job-1",
    run_uid: str = "run-1",
    attempt: int = 1,
    state: str = "",
    **meta: Any,
) -> dict[str, Any]:
    labels = {"ireko.dev/run": "demo", "ireko.dev/run-uid": run_uid, "ireko.dev/attempt": str(attempt)}
    return body(
        f"demo-{attempt}",
        uid=uid,
        version=version,
        labels=labels,
        owner=meta.get("owner", run_uid),
        status={"jobDeploymentStatus": state} if state else {},
    )


def pod(version: int = 3, *, phase: str = "Pending") -> dict[str, Any]:
    labels = {"ireko.dev/run": "demo", "ireko.dev/run-uid": "run-1", "ireko.dev/attempt": "1"}
    return body("demo-1-head", uid="pod-1", version=version, labels=labels, status={"phase": phase})


@pytest.fixture
def cache() -> Cache:
    return Cache()


def state_of(cache: Cache) -> str:
    snapshot = cache.snapshot(KEY)
    assert snapshot is not None
    return snapshot.jobs[0].deployment_status


def test_children_are_found_below_their_run(cache: Cache) -> None:
    cache.observe("rayclusters", None, body("c", uid="cluster-1", version=4, owner="job-1"))
    cache.observe("workloads", None, body("w", uid="load-1", version=5, owner="job-1"))
    cache.observe("pods", None, pod())
    cache.observe("rayjobs", None, job(attempt=2, uid="job-2", version=9))
    cache.observe("rayjobs", None, job())
    cache.observe("compressionruns", None, run())
    snapshot = cache.snapshot(KEY)
    assert snapshot is not None
    assert [child.attempt for child in snapshot.jobs] == [1, 2]
    assert [child.meta.name for child in snapshot.clusters] == ["c"]
    assert [child.meta.name for child in snapshot.workloads] == ["w"]
    assert [child.meta.name for child in snapshot.pods] == ["demo-1-head"]


def test_a_job_that_only_wears_the_labels_is_not_the_runs(cache: Cache) -> None:
    cache.observe("compressionruns", None, run())
    cache.observe("rayjobs", "ADDED", job(owner="somebody-else"))
    snapshot = cache.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.jobs == ()


def test_a_child_is_news_for_its_run_only_when_what_is_kept_of_it_changed(cache: Cache) -> None:
    assert cache.observe("rayjobs", None, job()) == {KEY}
    assert cache.observe("rayjobs", "MODIFIED", job(version=5)) == set()
    assert cache.observe("rayjobs", "MODIFIED", job(version=6, state="Running")) == {KEY}
    assert cache.observe("rayclusters", "ADDED", body("c", uid="cluster-1", version=7, owner="job-1")) == {
        KEY
    }
    assert cache.observe("rayjobs", "DELETED", job(version=8)) == {KEY}


def test_an_event_older_than_the_own_write_is_dropped(cache: Cache) -> None:
    cache.observe("compressionruns", None, run())
    cache.learn(Kind.JOBS, job(version=10, state="Running"))
    assert cache.observe("rayjobs", "MODIFIED", job(version=9, state="Initializing")) == set()
    assert state_of(cache) == "Running"


@pytest.mark.parametrize("late", ["event", "answer"])
def test_what_has_gone_does_not_come_back(cache: Cache, late: str) -> None:
    cache.observe("compressionruns", None, run())
    cache.observe("rayjobs", None, job())
    cache.observe("rayjobs", "DELETED", job(version=20))
    if late == "event":
        assert cache.observe("rayjobs", "MODIFIED", job(version=15)) == set()
    else:
        cache.learn(Kind.JOBS, job(version=15))
    snapshot = cache.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.jobs == ()


def test_a_run_made_anew_under_the_same_name_has_none_of_the_old_ones_children(cache: Cache) -> None:
    cache.observe("compressionruns", None, run())
    cache.observe("rayjobs", None, job())
    assert cache.observe("compressionruns", "ADDED", run(version=30, uid="run-2")) == {KEY}
    assert cache.observe("compressionruns", "DELETED", run(version=25)) == set()
    snapshot = cache.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.run.meta.uid == "run-2"
    assert snapshot.jobs == ()


def test_an_answer_without_finalizers_on_a_deleted_object_is_its_end(cache: Cache) -> None:
    cache.observe("compressionruns", None, run())
    ended = run(version=8)
    ended["metadata"]["deletionTimestamp"] = "2026-05-04T13:00:00Z"
    cache.learn(Kind.RUNS, ended)
    assert cache.snapshot(KEY) is None


@pytest.mark.parametrize(
    ("container", "wanted"),
    [
        ({"state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}, ("ErrImagePull", "", None)),
        ({"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}, ("", "OOMKilled", 137)),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
            },
            ("CrashLoopBackOff", "OOMKilled", 137),
        ),
    ],
)
def test_a_pods_containers_keep_why_they_wait_and_why_they_ended(
    cache: Cache, container: dict[str, Any], wanted: tuple[str, str, int | None]
) -> None:
    seen = pod()
    seen["status"] = {"phase": "Pending", "containerStatuses": [{"name": "ray", **container}]}
    cache.observe("compressionruns", None, run())
    cache.observe("pods", "ADDED", seen)
    snapshot = cache.snapshot(KEY)
    assert snapshot is not None
    kept = snapshot.pods[0].containers[0]
    assert (kept.waiting_reason, kept.ended_reason, kept.exit_code) == wanted


def test_a_run_gives_back_the_manifest_it_arrived_with(
    cache: Cache, make_manifest: Callable[..., dict[str, Any]]
) -> None:
    arrived = body("demo", uid="run-1", version=1, spec=make_manifest()["spec"])
    arrived["metadata"]["generation"] = 3
    cache.observe("compressionruns", None, arrived)
    snapshot = cache.snapshot(KEY)
    assert snapshot is not None
    manifest = snapshot.run.manifest()
    assert manifest["spec"] == make_manifest()["spec"]
    assert manifest["metadata"]["uid"] == "run-1"
    assert manifest["metadata"]["generation"] == 3
