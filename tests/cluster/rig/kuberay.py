"""KubeRay: its definitions, and its real operator beside an API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rig.api_server import Cluster
from rig.binaries import KUBERAY, find_or_build
from rig.processes import Process, free_port, wait_until

_DEFINITIONS = ("rayclusters", "rayjobs", "raycronjobs", "rayservices")


def install_kuberay_definitions(cluster: Cluster) -> None:
    """Give `cluster` the kinds of KubeRay: RayCluster, RayJob and the others that its operator insists on."""
    folder = find_or_build(KUBERAY).config / "crd" / "bases"
    cluster.install_definitions(*(folder / f"ray.io_{name}.yaml" for name in _DEFINITIONS))


@contextmanager
def running_kuberay(cluster: Cluster, log: Path, *, namespace: str | None = None) -> Iterator[Process]:
    """KubeRay's operator as a process that follows `cluster`, or one namespace of it.

    It reaches Ray's dashboards through the API server, so it need not be part of the pods' network.
    """
    health = free_port()
    watched = [f"--watch-namespace={namespace}"] if namespace else []
    operator = Process(
        name="ray-operator",
        command=[
            find_or_build(KUBERAY).path("ray-operator"),
            f"--kubeconfig={cluster.kubeconfig}",
            "--use-kubernetes-proxy",
            "--enable-leader-election=false",
            f"--metrics-addr=127.0.0.1:{free_port()}",
            f"--health-probe-bind-address=127.0.0.1:{health}",
            *watched,
        ],
        log=log,
    )
    try:
        wait_until(
            lambda: "Starting workers" in operator.tail(400),
            what="KubeRay's operator",
            timeout=60,
            watched=[operator],
        )
        yield operator
    finally:
        operator.stop()
