from __future__ import annotations

from typing import Any

import pytest

from ireko_api.reasons import Reason
from ireko_operator.kube.objects import ClusterObject, PodObject, cluster_object, pod_object
from ireko_operator.launch.troubles import pod_troubles, refusal


def pod(name: str = "demo-1-worker", *, deleting: bool = False, **status: Any) -> PodObject:
    metadata: dict[str, Any] = {"name": name, "namespace": "models", "uid": name, "resourceVersion": "1"}
    if deleting:
        metadata["deletionTimestamp"] = "2026-05-04T12:00:00Z"
    return pod_object({"metadata": metadata, "status": {"phase": "Pending", **status}})


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "trainer", "image": "ireko:9", "state": state}]}


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"conditions": [condition]}


def cluster(message: str) -> ClusterObject:
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreateHeadPod",
        "message": message,
    }
    return cluster_object(
        {
            "metadata": {"name": "c", "namespace": "models", "uid": "c", "resourceVersion": "1"},
            "status": {"conditions": [condition]},
        }
    )


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [
        (waiting("CreateContainerConfigError", 'secret "creds" not found'), Reason.SECRET_MISSING, '"creds"'),
        (
            waiting("CreateContainerConfigError", "couldn't find key TOKEN in Secret models/creds"),
            Reason.SECRET_MISSING,
            "TOKEN",
        ),
        (
            waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            Reason.PODS_FAILING,
            "runAsNonRoot",
        ),
        (waiting("ErrImagePull", "manifest unknown"), Reason.IMAGE_PULL_FAILED, "ireko:9"),
        (waiting("InvalidImageName", "couldn't parse"), Reason.IMAGE_PULL_FAILED, "couldn't parse"),
        (
            unscheduled('0/2 nodes are available: persistentvolumeclaim "storage" not found.'),
            Reason.STORAGE_MISSING,
            '"storage"',
        ),
        (
            unscheduled("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
            Reason.STORAGE_MISSING,
            "unbound",
        ),
        (
            unscheduled("0/2 nodes are available: 2 Insufficient cpu."),
            Reason.UNSCHEDULABLE,
            "Insufficient cpu",
        ),
    ],
)
def test_what_a_pod_waits_for_is_named_with_what_to_do(
    status: dict[str, Any], reason: Reason, said: str
) -> None:
    (found,) = pod_troubles([pod(**status)], [])
    assert found.reason is reason
    assert said in found.message
    assert found.message.endswith(reason.remedy)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            'pods "x" is forbidden: exceeded quota: small, requested: limits.cpu=4, used: limits.cpu=0',
            Reason.QUOTA_EXCEEDED,
        ),
        ('pods "x" is forbidden: failed quota: small: must specify limits.cpu', Reason.QUOTA_EXCEEDED),
        ("maximum memory usage per Container is 1Gi, but limit is 2Gi", Reason.QUOTA_EXCEEDED),
        (
            'pods "x" is forbidden: error looking up service account models/sa: serviceaccount "sa" not found',
            Reason.SERVICE_ACCOUNT_MISSING,
        ),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": …', Reason.POD_REFUSED),
        ('admission webhook "policy" denied the request: no', Reason.POD_REFUSED),
    ],
)
def test_why_pods_are_not_created_is_read_from_the_clusters_condition(message: str, reason: Reason) -> None:
    (found,) = pod_troubles([], [cluster(message)])
    assert found.reason is reason
    assert refusal(message) is reason


def test_a_failing_pull_says_the_same_while_kubernetes_backs_off() -> None:
    error = "failed to resolve reference ireko:9: not found"
    first = pod_troubles([pod(**waiting("ErrImagePull", error))], [])
    later = pod_troubles(
        [pod(**waiting("ImagePullBackOff", f'Back-off pulling image "ireko:9": ErrImagePull: {error}'))], []
    )
    assert first == later


def test_a_crash_is_told_until_the_container_is_ready_again() -> None:
    ended = {"lastState": {"terminated": {"reason": "Error", "exitCode": 2}}, "name": "trainer"}
    loop = {**ended, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}}
    again = {**ended, "state": {"running": {}}, "ready": False}
    well = {**ended, "state": {"running": {}}, "ready": True}
    told = [pod_troubles([pod(containerStatuses=[container])], []) for container in (loop, again, well)]
    assert told[0] == told[1]
    assert told[0][0].reason is Reason.PODS_FAILING
    assert "exit status 2" in told[0][0].message
    assert told[2] == ()


def test_many_pods_with_one_trouble_tell_it_once_and_the_worst_stands_first() -> None:
    pods = [pod(f"worker-{number}", **unscheduled("0/1 nodes are available")) for number in range(5)]
    pods.append(pod("head", **waiting("CreateContainerConfigError", 'secret "creds" not found')))
    reasons = [trouble.reason for trouble in pod_troubles(pods, [])]
    assert reasons == [Reason.SECRET_MISSING, Reason.UNSCHEDULABLE]


def test_pods_that_go_or_are_over_trouble_nobody() -> None:
    over = pod(phase="Failed", containerStatuses=waiting("ErrImagePull")["containerStatuses"])
    assert pod_troubles([pod(deleting=True, **waiting("ErrImagePull")), over], []) == ()
