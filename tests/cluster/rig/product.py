"""Ireko itself in a cluster of the rig: the chart, with images that run this checkout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ireko_operator.launch.rayjob import TRAINER_CONTAINER
from rig.cluster import NodeCluster
from rig.helm import Helm
from rig.images import OPERATOR, TRAINER

NAMESPACE = "ireko-system"
RELEASE = "ireko"


_PATIENCE = {"RAY_NUM_REDIS_GET_RETRIES": "60"}
"""A worker of Ray gives its head 40 seconds to start, which a machine that is one's whole cluster does not always
make. A head that was started again is only found by a worker that gave up and starts again as well."""


def this_checkout() -> dict[str, Any]:
    """Values with which the chart runs the programs of this checkout."""
    environment = [{"name": name, "value": value} for name, value in _PATIENCE.items()]
    return {
        "image": _image(OPERATOR),
        "trainer": {"image": _image(TRAINER)},
        "podDefaults": {"spec": {"containers": [{"name": TRAINER_CONTAINER, "env": environment}]}},
    }


def _image(name: str) -> dict[str, str]:
    repository, tag = name.rsplit(":", 1)
    return {"repository": repository, "tag": tag}


def install_ireko(cluster: NodeCluster, *, helm_home: Path, values: Mapping[str, Any]) -> str:
    """`helm install` the chart with `values` over those of this checkout and wait for its pods; Helm's notes."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    cluster.apply("-f", "-", manifest=namespace)
    helm = Helm(directory=helm_home, kubeconfig=cluster.kubeconfig)
    notes = helm.install({**this_checkout(), **values}, namespace=NAMESPACE, release=RELEASE)
    wait_for_deployments(cluster, NAMESPACE)
    return notes


def wait_for_deployments(cluster: NodeCluster, namespace: str, *, seconds: int = 600) -> None:
    """Wait until every Deployment of `namespace` is rolled out."""
    names = cluster.kubectl("get", "deployments", "-n", namespace, "-o", "name").stdout.split()
    for name in names:
        cluster.kubectl(
            "rollout", "status", name, "-n", namespace, f"--timeout={seconds}s", timeout=seconds + 20
        )
