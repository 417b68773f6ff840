"""The objects of an attempt: facts that KubeRay, Kueue, Pod Security and the trainer rely on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cluster_runs import PLATFORM, UID, run_with
from hypothesis import given
from hypothesis import strategies as st

from ireko_api.handoff import RunRequest
from ireko_api.spec import CompressionRun
from ireko_operator.launch import Memory
from ireko_operator.launch.platform import Platform, SubmissionMode
from ireko_operator.launch.rayjob import AttemptManifests, attempt_name, build_attempt

GIB = 2**30
LABELS = {
    "app.kubernetes.io/managed-by": "ireko",
    "ireko.dev/run": "demo",
    "ireko.dev/run-uid": UID,
    "ireko.dev/attempt": "3",
}


def built(run: CompressionRun | None = None, *, platform: Platform = PLATFORM) -> AttemptManifests:
    memory = Memory(worker=3 * GIB, head=2 * GIB)
    return build_attempt(run or run_with(), number=3, memory=memory, platform=platform)


def cluster(manifests: AttemptManifests) -> dict[str, Any]:
    spec: dict[str, Any] = manifests.rayjob["spec"]["rayClusterSpec"]
    return spec


def head(manifests: AttemptManifests) -> dict[str, Any]:
    spec: dict[str, Any] = cluster(manifests)["headGroupSpec"]["template"]["spec"]
    return spec


def worker(manifests: AttemptManifests) -> dict[str, Any]:
    spec: dict[str, Any] = cluster(manifests)["workerGroupSpecs"][0]["template"]["spec"]
    return spec


def templates(manifests: AttemptManifests) -> Iterator[dict[str, Any]]:
    yield cluster(manifests)["headGroupSpec"]["template"]
    for group in cluster(manifests)["workerGroupSpecs"]:
        yield group["template"]
    if "submitterPodTemplate" in manifests.rayjob["spec"]:
        yield manifests.rayjob["spec"]["submitterPodTemplate"]


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


# --- names ---

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)


@given(run=NAMES, uid=st.uuids().map(str), number=st.integers(1, 10**6))
def test_the_name_of_an_attempt_is_one_that_kuberay_takes(run: str, uid: str, number: int) -> None:
    name = attempt_name(run=run, uid=uid, number=number)
    assert len(name) <= 47
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert name == attempt_name(run=run, uid=uid, number=number)


def test_a_run_made_anew_under_the_same_name_has_attempts_of_other_names() -> None:
    assert attempt_name(run="a", uid="1", number=1) != attempt_name(run="a", uid="2", number=1)


def test_both_objects_have_one_name_and_belong_to_the_run() -> None:
    manifests = built()
    for body in (manifests.config_map, manifests.rayjob):
        assert body["metadata"]["name"] == attempt_name(run="demo", uid=UID, number=3)
        assert body["metadata"]["namespace"] == "edge"
        assert body["metadata"]["labels"] == LABELS
        assert body["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "ireko.dev/v1alpha1",
                "kind": "CompressionRun",
                "name": "demo",
                "uid": UID,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]


def test_every_pod_says_which_attempt_it_belongs_to() -> None:
    run = run_with(podTemplate={"metadata": {"labels": {"team": "edge"}, "annotations": {"a": "b"}}})
    found = list(templates(built(run)))
    assert len(found) == 3
    for template in found:
        assert template["metadata"] == {"labels": {"team": "edge", **LABELS}, "annotations": {"a": "b"}}


# --- what the trainer gets ---


def request(manifests: AttemptManifests) -> RunRequest:
    return RunRequest.model_validate_json(manifests.config_map["data"]["request.json"])


def test_the_request_travels_in_a_config_map_that_nobody_changes() -> None:
    manifests = built()
    assert manifests.config_map["immutable"] is True
    told = request(manifests)
    run = run_with()
    assert (told.name, told.namespace, told.uid, told.attempt) == ("demo", "edge", UID, 3)
    assert (told.spec, told.spec_digest) == (run.spec, run.spec.digest())
    assert told.tracking_uri == "http://mlflow:5000"
    assert told.storage == f"/var/lib/ireko/storage/{UID}"


def test_every_attempt_of_a_run_has_the_same_storage() -> None:
    memory = Memory(worker=GIB, head=GIB)
    run = run_with()
    places = {
        request(build_attempt(run, number=number, memory=memory, platform=PLATFORM)).storage
        for number in (1, 2)
    }
    assert len(places) == 1


def test_a_run_in_a_bucket_has_a_place_of_its_own_there() -> None:
    store = {"objectStore": {"uri": "s3://bucket/prefix/", "credentialsSecret": "bucket"}}
    manifests = built(run_with(storage=store))
    assert request(manifests).storage == f"s3://bucket/prefix/{UID}"
    assert "/var/lib/ireko/storage" not in mounts(worker(manifests)["containers"][0])


@pytest.mark.parametrize("of", [head, worker])
def test_the_request_the_storage_and_shared_memory_are_mounted(of: Any) -> None:
    claim = {"persistentVolumeClaim": {"claimName": "checkpoints", "subPath": "edge/demo"}}
    pod = of(built(run_with(storage=claim)))
    mounted = mounts(pod["containers"][0])
    assert mounted["/etc/ireko"]["readOnly"] is True
    assert mounted["/var/lib/ireko/storage"]["subPath"] == "edge/demo"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounted["/etc/ireko"]["name"]]["configMap"]["name"].startswith("demo-")
    assert volumes[mounted["/dev/shm"]["name"]]["emptyDir"] == {"medium": "Memory"}
    assert volumes[mounted["/var/lib/ireko/storage"]["name"]]["persistentVolumeClaim"] == {
        "claimName": "checkpoints"
    }


def test_credentials_are_named_and_never_copied() -> None:
    store = {"objectStore": {"uri": "s3://bucket", "credentialsSecret": "bucket"}}
    manifests = built(run_with(storage=store, registry={"credentialsSecret": "mlflow"}))
    for pod in (head(manifests), worker(manifests)):
        assert pod["containers"][0]["envFrom"] == [
            {"secretRef": {"name": "bucket"}},
            {"secretRef": {"name": "mlflow"}},
        ]
    submitter = manifests.rayjob["spec"]["submitterPodTemplate"]["spec"]
    assert "envFrom" not in submitter["containers"][0]


def test_ray_neither_phones_home_nor_needs_a_home() -> None:
    for template in templates(built()):
        environment = {item["name"]: item["value"] for item in template["spec"]["containers"][0]["env"]}
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert environment["HOME"] == "/tmp"


def test_ray_gives_a_stopped_trainer_most_of_the_grace_of_its_pod() -> None:
    cluster = built().rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
        grace = pod["terminationGracePeriodSeconds"]
        for setting in ("RAY_JOB_STOP_WAIT_TIME_S", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"):
            assert grace / 2 < int(environment[setting]) < grace


# --- what KubeRay gets ---


def test_the_entrypoint_is_the_same_for_every_run() -> None:
    """KubeRay pastes it into a shell script."""
    spec = built(run_with(queueName="gpus", image="x;reboot")).rayjob["spec"]
    assert spec["entrypoint"] == "python -m ireko_trainer /etc/ireko/request.json"
    assert "metadata" not in spec
    assert "runtimeEnvYAML" not in spec


def test_kuberay_neither_retries_nor_keeps_a_cluster() -> None:
    spec = built().rayjob["spec"]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (
        0,
        True,
        0,
    )
    assert "activeDeadlineSeconds" not in spec
    assert "clusterSelector" not in spec
    assert "deletionStrategy" not in spec


def test_the_cluster_has_a_fixed_size_and_a_token() -> None:
    spec = cluster(built(run_with(workers=4)))
    assert spec["enableInTreeAutoscaling"] is False
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == PLATFORM.ray_version
    (group,) = spec["workerGroupSpecs"]
    assert {group[key] for key in ("replicas", "minReplicas", "maxReplicas")} == {4}


def test_only_the_trainer_itself_runs_on_the_head() -> None:
    spec = built().rayjob["spec"]
    assert spec["entrypointNumCpus"] == 0
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("mode", list(SubmissionMode))
def test_the_way_of_submission_is_the_administrators(mode: SubmissionMode) -> None:
    spec = built(platform=replace(PLATFORM, submission_mode=mode)).rayjob["spec"]
    assert spec["submissionMode"] == mode
    assert ("submitterPodTemplate" in spec) is (mode is SubmissionMode.K8S_JOB)


def test_start_parameters_are_strings() -> None:
    spec = cluster(built())
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


# --- Kueue ---


def test_a_run_that_queues_starts_suspended_with_the_label_of_its_queue() -> None:
    body = built(run_with(queueName="gpus", priorityClassName="low")).rayjob
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert body["spec"]["suspend"] is True
    assert body["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["priorityClassName"] == "low"


def test_a_run_that_does_not_queue_leaves_suspend_alone() -> None:
    assert "suspend" not in built().rayjob["spec"]


# --- resources and places ---


def requests(pod: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = pod["containers"][0]["resources"]["requests"]
    return found


def test_an_attempt_may_use_the_memory_that_was_decided() -> None:
    run = run_with(
        resourcesPerWorker={"cpu": "2", "memory": "1Gi", "gpu": 1}, head={"resources": {"cpu": "500m"}}
    )
    manifests = built(run)
    assert requests(worker(manifests)) == {"cpu": "2", "memory": "3Gi", "nvidia.com/gpu": "1"}
    assert requests(head(manifests)) == {"cpu": "500m", "memory": "2Gi"}


def test_without_workers_the_head_trains() -> None:
    run = run_with(workers=0, resourcesPerWorker={"cpu": "4", "gpu": 2}, head={"resources": {"cpu": "500m"}})
    manifests = built(run)
    assert cluster(manifests)["workerGroupSpecs"] == []
    assert requests(head(manifests)) == {"cpu": "4", "memory": "2Gi", "nvidia.com/gpu": "2"}


def test_a_run_that_trains_nothing_gets_no_workers() -> None:
    run = run_with(pipeline={"quantization": {}}, resourcesPerWorker={"cpu": "4", "gpu": 2})
    assert cluster(built(run))["workerGroupSpecs"] == []
    assert requests(head(built(run))) == {"cpu": "4", "memory": "2Gi", "nvidia.com/gpu": "2"}


def test_memory_and_gpus_are_limited_and_cores_only_requested() -> None:
    container = worker(built(run_with(resourcesPerWorker={"cpu": "1500m", "gpu": 1})))["containers"][0]
    assert container["resources"]["limits"] == {"memory": "3Gi", "nvidia.com/gpu": "1"}


def test_ray_counts_the_cores_that_a_worker_requests() -> None:
    group = cluster(built(run_with(resourcesPerWorker={"cpu": "1500m"})))["workerGroupSpecs"][0]
    assert group["rayStartParams"]["num-cpus"] == "2"


def test_every_pod_goes_where_the_run_says() -> None:
    run = run_with(
        image="registry.example/own:2",
        imagePullSecrets=["a", "b"],
        serviceAccountName="trainer",
        priorityClassName="low",
        nodeSelector={"zone": "x"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
    )
    for template in templates(built(run)):
        pod = template["spec"]
        assert pod["containers"][0]["image"] == "registry.example/own:2"
        assert pod["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
        assert pod["serviceAccountName"] == "trainer"
        assert pod["priorityClassName"] == "low"
        assert pod["nodeSelector"] == {"zone": "x"}
        assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]


def test_without_an_image_of_its_own_a_run_takes_the_operators() -> None:
    assert head(built())["containers"][0]["image"] == PLATFORM.trainer_image


def test_pods_have_time_to_save_their_state_and_are_told_to() -> None:
    manifests = built()
    hook = head(manifests)["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook == ["python", "-m", "ireko_trainer.stop", "/etc/ireko/request.json"]
    assert hook[-1] in built().rayjob["spec"]["entrypoint"]
    assert head(manifests)["terminationGracePeriodSeconds"] == 120
    assert worker(manifests)["terminationGracePeriodSeconds"] == 120


# --- the layers ---


def test_every_container_runs_restricted() -> None:
    template = {"spec": {"initContainers": [{"name": "fetch"}], "containers": [{"name": "beside"}]}}
    for found in templates(built(run_with(podTemplate=template))):
        pod = found["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_template_of_the_run_lies_over_the_administrators_over_the_operators() -> None:
    defaults = {
        "spec": {
            "schedulerName": "administrators",
            "nodeSelector": {"pool": "training"},
            "terminationGracePeriodSeconds": 30,
            "containers": [
                {"name": "trainer", "env": [{"name": "HOME", "value": "/home"}, {"name": "A", "value": "a"}]}
            ],
        }
    }
    own = {
        "spec": {
            "schedulerName": "runs",
            "containers": [{"name": "trainer", "env": [{"name": "A", "value": "b"}]}],
        }
    }
    run = run_with(podTemplate=own, nodeSelector={"zone": "x"})
    pod = worker(built(run, platform=replace(PLATFORM, pod_defaults=defaults)))
    assert pod["schedulerName"] == "runs"
    assert pod["nodeSelector"] == {"zone": "x", "pool": "training"}
    assert pod["terminationGracePeriodSeconds"] == 30
    environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
    assert (environment["HOME"], environment["A"]) == ("/home", "b")
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_container_that_ray_starts_is_the_first() -> None:
    defaults = {"spec": {"containers": [{"name": "agent"}, {"name": "trainer"}]}}
    own = {"spec": {"containers": [{"name": "beside"}, {"name": "trainer"}]}}
    pod = worker(built(run_with(podTemplate=own), platform=replace(PLATFORM, pod_defaults=defaults)))
    assert [container["name"] for container in pod["containers"]] == ["trainer", "agent", "beside"]


def test_the_administrator_may_do_what_runs_may_not() -> None:
    defaults = {
        "spec": {
            "securityContext": {"runAsNonRoot": False, "runAsUser": 0},
            "volumes": [{"name": "venv", "hostPath": {"path": "/opt/venv"}}],
            "containers": [{"name": "trainer", "volumeMounts": [{"name": "venv", "mountPath": "/opt/venv"}]}],
        }
    }
    for template in templates(built(platform=replace(PLATFORM, pod_defaults=defaults))):
        pod = template["spec"]
        assert pod["securityContext"]["runAsUser"] == 0
        assert {"name": "venv", "hostPath": {"path": "/opt/venv"}} in pod["volumes"]
        assert "/opt/venv" in mounts(pod["containers"][0])


def test_the_submitter_gets_neither_the_trainers_resources_nor_its_neighbours() -> None:
    own = {
        "spec": {
            "initContainers": [{"name": "fetch"}],
            "containers": [
                {"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "8"}}},
                {"name": "beside"},
            ],
        }
    }
    pod = built(run_with(podTemplate=own)).rayjob["spec"]["submitterPodTemplate"]["spec"]
    assert [container["name"] for container in pod["containers"]] == ["trainer"]
    assert "initContainers" not in pod
    assert limits_of_submitter(pod) == {"cpu": "1", "memory": "1Gi"}
    assert pod["restartPolicy"] == "Never"


def limits_of_submitter(pod: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = pod["containers"][0]["resources"]["limits"]
    return found


def test_the_same_attempt_is_built_the_same_way_every_time() -> None:
    assert json.dumps(built().rayjob) == json.dumps(built().rayjob)
    assert json.dumps(built().config_map) == json.dumps(built().config_map)
