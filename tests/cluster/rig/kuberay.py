"""KubeRay: its definitions, and its real operator beside an API server or as a pod."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rig.api_server import Cluster
from rig.binaries import KUBERAY, find_or_build
from rig.images import HOST
from rig.processes import Process, free_port, wait_until

NAMESPACE = "kuberay-system"

RAYJOBS = ("rayclusters", "rayjobs")
"""The kinds that Ireko has to do with. Each costs the API server two seconds of a core to load."""

_ALL_KINDS = (*RAYJOBS, "raycronjobs", "rayservices")
"""The kinds without which KubeRay's operator does not start."""

_RIGHTS = (
    "role",
    "role_binding",
    "leader_election_role",
    "leader_election_role_binding",
    "service_account",
)


def install_kuberay_definitions(cluster: Cluster, names: Sequence[str] = RAYJOBS) -> None:
    """Give `cluster` the kinds of KubeRay: RayCluster and RayJob, or all that `names` says."""
    folder = find_or_build(KUBERAY).config / "crd" / "bases"
    cluster.install_definitions(*(folder / f"ray.io_{name}.yaml" for name in names))


@contextmanager
def running_kuberay(cluster: Cluster, log: Path, *, namespace: str | None = None) -> Iterator[Process]:
    """KubeRay's operator as a process that follows `cluster`, or one namespace of it.

    It reaches Ray's dashboards through the API server, so it need not be part of the pods' network.
    """
    install_kuberay_definitions(cluster, _ALL_KINDS)
    watched = [f"--watch-namespace={namespace}"] if namespace else []
    operator = Process(
        name="ray-operator",
        command=[
            find_or_build(KUBERAY).path("ray-operator"),
            f"--kubeconfig={cluster.kubeconfig}",
            "--use-kubernetes-proxy",
            "--enable-leader-election=false",
            f"--metrics-addr=127.0.0.1:{free_port()}",
            f"--health-probe-bind-address=127.0.0.1:{free_port()}",
            *watched,
        ],
        log=log,
    )
    try:
        wait_until(
            lambda: "Starting workers" in operator.tail(400),
            what="KubeRay's operator",
            timeout=240,
            watched=[operator],
        )
        yield operator
    finally:
        operator.stop()


def install_kuberay(cluster: Cluster) -> None:
    """Install KubeRay as its own manifests do, as a pod with the rights that they give; returns when it is up."""
    install_kuberay_definitions(cluster, _ALL_KINDS)
    programs = find_or_build(KUBERAY)
    documents = [
        *_documents(*(programs.config / "rbac" / f"{name}.yaml" for name in _RIGHTS)),
        *_documents(
            programs.config / "manager" / "manager.yaml", programs.config / "manager" / "service.yaml"
        ),
    ]
    for document in documents:
        _place(document)
        if document["kind"] == "Deployment":
            _run_from_here(document["spec"]["template"]["spec"], program=programs.path("ray-operator"))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    cluster.apply_all([namespace, *documents])
    cluster.kubectl(
        "rollout", "status", "deployment/kuberay-operator", "-n", NAMESPACE, "--timeout=600s", timeout=620
    )


def _documents(*paths: Path) -> list[dict[str, Any]]:
    return [
        document
        for path in paths
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if document
    ]


def _place(document: dict[str, Any]) -> None:
    """Put a manifest of KubeRay's into its namespace, as `kustomize` would."""
    if not document["kind"].startswith("Cluster"):
        document["metadata"]["namespace"] = NAMESPACE
    for subject in document.get("subjects", ()):
        subject["namespace"] = NAMESPACE


def _run_from_here(pod: dict[str, Any], *, program: Path) -> None:
    """Let KubeRay's pod run the operator that was built here; everything else stays as KubeRay has it."""
    (container,) = pod["containers"]
    container.update(image=HOST, imagePullPolicy="Never", command=[str(program)])
    # A tenth of a core, KubeRay's own limit, takes a slow machine through every probe of its patience.
    container["resources"] = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
    for probe in ("livenessProbe", "readinessProbe"):
        container[probe].update(initialDelaySeconds=1, periodSeconds=2, failureThreshold=60, timeoutSeconds=5)
    pod["securityContext"]["runAsUser"] = 65532
