"""A volume that a real kubelet cannot mount, and what a run says of it until it can.

The operator reconciles against the cluster of the nodes; KubeRay's part is one pod, made as the RayJob says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ireko_operator.kube.client import connect
from play.world import PODS, World
from rig.cluster import NodeCluster
from rig.fixtures import CRD
from rig.kuberay import install_kuberay_definitions

NOBODY = "http://127.0.0.1:9"
"""An address where no MLflow answers; nothing is asked of it before training begins."""
HEAD = "demo-head"


@pytest.fixture
def world(cluster: NodeCluster, pod_namespace: str, tmp_path: Path) -> Iterator[World]:
    """A namespace on the nodes that an operator looks after; the definition of runs goes with it."""
    cluster.install_definitions(CRD)
    install_kuberay_definitions(cluster)
    cluster.shared_storage(pod_namespace)
    made = World(
        api=connect(kubeconfig=cluster.kubeconfig),
        hands=connect(kubeconfig=cluster.kubeconfig),
        namespace=pod_namespace,
        tracking_uri=NOBODY,
        directory=tmp_path,
    )
    yield made
    made.close()
    cluster.kubectl("delete", "-f", CRD)


def make_head(world: World) -> None:
    """The head pod of the first attempt, as KubeRay makes it but for its command."""
    template = world.job()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    labels = {"ray.io/cluster": "demo", "ray.io/node-type": "head", **template["metadata"]["labels"]}
    spec = template["spec"]
    spec["containers"][0] |= {"command": ["sleep", "infinity"], "imagePullPolicy": "Never", "lifecycle": {}}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": HEAD, "namespace": world.namespace, "labels": labels},
        "spec": {**spec, "terminationGracePeriodSeconds": 1},
    }
    world.hands.create(PODS, namespace=world.namespace, body=body, manager="kuberay")
    world.play("Initializing", rayClusterName="demo")


def until(world: World, status: str, reason: str) -> None:
    """Let the operator look until it says so."""

    def reached() -> bool:
        world.settle()
        return world.reason("ClusterReady") == (status, reason)

    world.wait(reached, seconds=180)


@pytest.mark.parametrize(
    ("source", "wanted", "reason"),
    [
        ({"secret": {"secretName": "hub-token"}}, {"kind": "Secret"}, "SecretMissing"),
        ({"configMap": {"name": "hub-token"}}, {"kind": "ConfigMap"}, "ConfigMapMissing"),
    ],
)
def test_what_a_pod_cannot_mount_is_named_until_it_is_there(
    cluster: NodeCluster, world: World, source: dict[str, Any], wanted: dict[str, Any], reason: str
) -> None:
    mount = {"name": "hub", "mountPath": "/hub"}
    template = {
        "spec": {
            "volumes": [{"name": "hub", **source}],
            "containers": [{"name": "trainer", "volumeMounts": [mount]}],
        }
    }
    world.start(compute={"podTemplate": template})
    make_head(world)
    until(world, "Unknown", "ClusterStarting")
    world.pass_time(60)  # what is only told to those who wait need not be waited for
    until(world, "False", reason)
    message = world.condition("ClusterReady")["message"]
    assert '"hub-token" not found' in message
    assert HEAD in message
    assert "Create it in the run's namespace" in message
    with world.requests.during() as made:
        world.look()
    assert made == []

    there = {"apiVersion": "v1", **wanted, "metadata": {"name": "hub-token", "namespace": world.namespace}}
    cluster.apply_all([there])
    until(world, "Unknown", "ClusterStarting")
    cluster.kubectl("wait", f"pod/{HEAD}", "-n", world.namespace, "--for=condition=Ready", "--timeout=180s")
