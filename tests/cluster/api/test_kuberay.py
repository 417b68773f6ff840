"""KubeRay's real operator takes the RayJobs that Ireko builds and makes the pods that they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kubernetes.dynamic import DynamicClient

from api.tables import manifest_with
from ireko_api.validation import parse
from ireko_operator.launch import Memory
from ireko_operator.launch.platform import Platform, SubmissionMode
from ireko_operator.launch.rayjob import AttemptManifests, build_attempt
from rig.api_server import Cluster
from rig.images import TRAINER
from rig.kuberay import running_kuberay
from rig.processes import wait_until

ADMITTED = {
    SubmissionMode.K8S_JOB: "restricted",
    SubmissionMode.HTTP: "restricted",
    # KubeRay puts a container of its own into the head pod and gives it no security context.
    SubmissionMode.SIDECAR: "baseline",
}
STORAGE = {"compute.storage": {"persistentVolumeClaim": {"claimName": "storage"}}}
MEMORY = Memory(worker=2 * 2**30, head=2 * 2**30)


@pytest.fixture(scope="module")
def namespaces(api_server: Cluster) -> Iterator[dict[str, str]]:
    """A namespace for each Pod Security Standard."""
    with ExitStack() as stack:
        yield {
            standard: stack.enter_context(
                api_server.namespace(labels={"pod-security.kubernetes.io/enforce": standard})
            )
            for standard in ("restricted", "baseline")
        }


@pytest.fixture(scope="module")
def watched(
    api_server: Cluster, namespaces: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """KubeRay, at work in the namespaces; its log."""
    log = tmp_path_factory.mktemp("kuberay") / "kuberay.log"
    with running_kuberay(api_server, log, namespace=",".join(namespaces.values())):
        yield log


@pytest.fixture(scope="module")
def client(api_server: Cluster) -> DynamicClient:
    return api_server.client()


def attempt(
    client: DynamicClient, namespace: str, *, name: str, edits: dict[str, Any], mode: SubmissionMode
) -> AttemptManifests:
    """The objects of the first attempt of a run that the API server knows."""
    manifest = manifest_with({**STORAGE, **edits})
    manifest["metadata"]["name"] = name
    runs = client.resources.get(api_version=manifest["apiVersion"], kind=manifest["kind"])
    kept = runs.create(body=manifest, namespace=namespace).to_dict()
    platform = Platform(trainer_image=TRAINER, tracking_uri="http://mlflow:5000", submission_mode=mode)
    return build_attempt(parse(kept), number=1, memory=MEMORY, platform=platform)


def submitted(client: DynamicClient, manifests: AttemptManifests) -> Any:
    """Create the objects as the operator does, but with every unknown field refused; the RayJob's reader."""
    for body in (manifests.config_map, manifests.rayjob):
        kind = client.resources.get(api_version=body["apiVersion"], kind=body["kind"])
        kind.create(
            body=body, namespace=body["metadata"]["namespace"], query_params=[("fieldValidation", "Strict")]
        )
    metadata = manifests.rayjob["metadata"]
    rayjobs = client.resources.get(api_version="ray.io/v1", kind="RayJob")
    return lambda: rayjobs.get(name=metadata["name"], namespace=metadata["namespace"])


def pods_of(client: DynamicClient, namespace: str, cluster: str) -> list[Any]:
    pods = client.resources.get(api_version="v1", kind="Pod")
    return list(pods.get(namespace=namespace, label_selector=f"ray.io/cluster={cluster}").items)


@pytest.mark.parametrize("mode", SubmissionMode)
@pytest.mark.parametrize("workers", [0, 2])
def test_kuberay_makes_the_pods_of_an_attempt(
    client: DynamicClient, watched: Path, namespaces: dict[str, str], mode: SubmissionMode, workers: int
) -> None:
    namespace = namespaces[ADMITTED[mode]]
    name = f"{mode.value.lower()}-{workers}"
    manifests = attempt(client, namespace, name=name, edits={"compute.workers": workers}, mode=mode)
    rayjob = submitted(client, manifests)
    wait_until(
        lambda: (rayjob().status or {}).get("jobDeploymentStatus") not in (None, ""),
        what="KubeRay to take the RayJob",
        timeout=60,
    )
    assert rayjob().status.jobDeploymentStatus == "Initializing"
    cluster = rayjob().status.rayClusterName
    wait_until(
        lambda: len(pods_of(client, namespace, cluster)) == 1 + workers,
        what="the pods of the Ray cluster",
        timeout=60,
    )
    for pod in pods_of(client, namespace, cluster):
        assert pod.spec.automountServiceAccountToken is False
        assert {container.image for container in pod.spec.containers} == {TRAINER}
        assert pod.metadata.labels["ireko.dev/run"] == name


def test_kuberay_leaves_an_attempt_alone_that_waits_for_its_queue(
    client: DynamicClient, watched: Path, namespaces: dict[str, str]
) -> None:
    edits = {"compute.queueName": "team-a"}
    rayjob = submitted(
        client,
        attempt(client, namespaces["restricted"], name="queued", edits=edits, mode=SubmissionMode.K8S_JOB),
    )
    wait_until(
        lambda: (rayjob().status or {}).get("jobDeploymentStatus") == "Suspended",
        what="KubeRay to see that the RayJob is suspended",
        timeout=60,
    )
    assert not rayjob().status.rayClusterName


def test_nothing_that_kuberay_saw_was_worth_a_warning(
    client: DynamicClient, watched: Path, namespaces: dict[str, str]
) -> None:
    """Runs after the tests above and judges what they did.

    KubeRay may look for a cluster that it has just made before its cache has it; it makes no second one.
    """
    known = client.resources.get(api_version="v1", kind="Event")
    events = [event for name in namespaces.values() for event in known.get(namespace=name).items]
    assert events
    assert [
        (event.reason, event.message)
        for event in events
        if event.type == "Warning" and "already exists" not in event.message
    ] == []
