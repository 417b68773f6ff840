"""Kueue: its definitions and its real manager beside an API server, webhooks included.

Outside of a cluster two things are missing that Kueue counts on. Nobody mounts the certificate that it makes for
itself, so it is written to where it looks for it; and its Service has no pods behind it, so the Service is another
name for this machine, which the API server follows while it still asks for the certificate of the Service.
"""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import CoreV1Api

from rig.api_server import Cluster
from rig.binaries import KUEUE, find_or_build
from rig.control_plane import LOOPBACK
from rig.processes import Process, free_port, wait_until

NAMESPACE = "kueue-system"
SERVICE = "kueue-webhook-service"
SECRET = "kueue-webhook-server-cert"

_CONVERTED = ("clusterqueues", "cohorts", "localqueues", "multikueueclusters", "workloads")
"""The kinds that Kueue serves in two versions and converts itself."""

_ADMITTED = ("clusterqueues", "cohorts", "rayjobs", "resourceflavors", "workloads")
"""The kinds whose writing Kueue is asked about: its own and the one job that it queues here."""


@contextmanager
def running_kueue(cluster: Cluster, log: Path) -> Iterator[Process]:
    """Kueue's manager as a process that queues the RayJobs of `cluster`, which knows RayJobs already."""
    directory = log.parent / "kueue"
    (directory / "certificates").mkdir(parents=True)
    port, probes = free_port(), free_port()
    _install(cluster, directory, port=port)
    configuration = directory / "configuration.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(directory, port=port, probes=probes)))
    manager = Process(
        name="kueue",
        command=[
            find_or_build(KUEUE).path("kueue"),
            f"--kubeconfig={cluster.kubeconfig}",
            f"--config={configuration}",
        ],
        log=log,
    )
    try:
        _mount_certificate(cluster, directory / "certificates", manager)
        wait_until(
            lambda: _answers(f"http://{LOOPBACK}:{probes}/readyz"),
            what="Kueue's manager",
            timeout=300,
            watched=[manager],
        )
        yield manager
    finally:
        manager.stop()


def _configuration(directory: Path, *, port: int, probes: int) -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"{LOOPBACK}:{probes}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": LOOPBACK, "port": port, "certDir": str(directory / "certificates")},
        "leaderElection": {"leaderElect": False},
        "integrations": {"frameworks": ["ray.io/rayjob"]},
        # It is an aggregated API server, for which the API server would need a way to it.
        "featureGates": {"VisibilityOnDemand": False},
    }


def _install(cluster: Cluster, directory: Path, *, port: int) -> None:
    """Kueue's definitions, and what leads the API server to its webhooks at `port`."""
    config = find_or_build(KUEUE).config
    definitions = [_definition(path, port=port) for path in sorted((config / "crd" / "bases").glob("*.yaml"))]
    (directory / "definitions.yaml").write_text(yaml.safe_dump_all(definitions), encoding="utf-8")
    cluster.install_definitions(directory / "definitions.yaml")
    manifests = (config / "webhook" / "manifests.yaml").read_text(encoding="utf-8")
    cluster.apply_all(
        [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": SERVICE, "namespace": NAMESPACE},
                "spec": {"type": "ExternalName", "externalName": "localhost"},
            },
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}},
            *(_webhooks(document, port=port) for document in yaml.safe_load_all(manifests)),
        ]
    )


def _definition(path: Path, *, port: int) -> dict[str, Any]:
    """A definition of Kueue's, with the conversion that its own kustomization adds."""
    definition: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if definition["spec"]["names"]["plural"] in _CONVERTED:
        definition["spec"]["conversion"] = {
            "strategy": "Webhook",
            "webhook": {
                "clientConfig": {"service": _service(port, path="/convert")},
                "conversionReviewVersions": ["v1"],
            },
        }
    return definition


def _webhooks(configuration: dict[str, Any], *, port: int) -> dict[str, Any]:
    """A webhook configuration of Kueue's, with the name that Kueue writes its certificate to."""
    configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
    configuration["webhooks"] = [
        {
            **webhook,
            "clientConfig": {"service": _service(port, path=webhook["clientConfig"]["service"]["path"])},
        }
        for webhook in configuration["webhooks"]
        if webhook["rules"][0]["resources"][0] in _ADMITTED
    ]
    return configuration


def _service(port: int, *, path: str) -> dict[str, Any]:
    return {"name": SERVICE, "namespace": NAMESPACE, "port": port, "path": path}


def _mount_certificate(cluster: Cluster, directory: Path, manager: Process) -> None:
    """Do what a kubelet does with the Secret that Kueue keeps its certificate in, once it is made."""
    api = CoreV1Api(cluster.api_client())
    made: dict[str, Any] = {}

    def there() -> bool:
        made.update(api.read_namespaced_secret(SECRET, NAMESPACE).data or {})
        return bool(made)

    wait_until(there, what="Kueue's certificate", timeout=300, watched=[manager])
    for name, content in made.items():
        (directory / name).write_bytes(base64.b64decode(content))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
