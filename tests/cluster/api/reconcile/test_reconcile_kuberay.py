"""Troubles as KubeRay's real operator and the API server make them, and their end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ireko_operator.kube.client import KubeClient, NotFoundError, connect
from ireko_operator.kube.keys import Resource
from play.world import CLUSTERS, PODS, World
from rig.api_server import Cluster, running_api_server
from rig.kuberay import install_kuberay_definitions

CORE_EVENTS = Resource(group="", version="v1", plural="events")
ACCOUNTS = Resource(group="", version="v1", plural="serviceaccounts")
CRD = Path(__file__).parents[4] / "crds" / "ireko.dev_compressionruns.yaml"


@pytest.fixture
def world(world: World, kuberay: Path) -> Iterator[World]:
    """A world in which KubeRay's real operator is at work."""
    yield world
    world.close()
    for body in world.hands.list(CLUSTERS, namespace=world.namespace):
        meta = body["metadata"]
        world.hands.delete(CLUSTERS, namespace=world.namespace, name=meta["name"], uid=meta["uid"])


def settles_at(world: World, reason: str, *, condition: str = "ClusterReady") -> None:
    """Wait for KubeRay to get on until the operator says `reason`."""

    def reached() -> bool:
        world.settle()
        return world.reason(condition)[1] == reason

    world.wait(reached, seconds=60)


def head(world: World) -> Mapping[str, Any] | None:
    pods = world.hands.list(PODS, namespace=world.namespace, selector="ray.io/node-type=head")
    return pods[0] if pods else None


def say_of_head(world: World, **status: Any) -> None:
    """What a kubelet would say of the head pod."""
    pod = head(world)
    assert pod is not None
    world.hands.apply(
        PODS,
        namespace=world.namespace,
        name=pod["metadata"]["name"],
        subresource="status",
        manager="kubelet",
        body={
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod["metadata"]["name"], "namespace": world.namespace},
            "status": status,
        },
    )


def waits(world: World, reason: str, message: str) -> None:
    pod = head(world)
    assert pod is not None
    name = pod["spec"]["containers"][0]["name"]
    container = {
        "name": name,
        "image": "ireko.test/trainer:dev",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    say_of_head(world, phase="Pending", containerStatuses=[container])


def test_pods_that_kuberay_makes_are_seen_with_what_they_wait_for(world: World) -> None:
    world.start()
    world.wait(lambda: head(world), seconds=60)
    settles_at(world, "ClusterStarting")
    waits(world, "CreateContainerConfigError", 'secret "credentials" not found')
    world.settle()
    assert world.reason("ClusterReady") == ("False", "SecretMissing")
    assert '"credentials"' in world.condition("ClusterReady")["message"]
    waits(world, "ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: not found')
    world.settle()
    assert world.reason("ClusterReady") == ("False", "ImagePullFailed")
    unbound = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": '0/2 nodes are available: persistentvolumeclaim "storage" not found.',
    }
    say_of_head(world, phase="Pending", conditions=[unbound])
    world.settle()
    assert world.reason("ClusterReady") == ("False", "StorageMissing")
    say_of_head(world, phase="Pending")
    world.settle()
    assert world.reason("ClusterReady") == ("Unknown", "ClusterStarting")


def hangs(world: World) -> None:
    """Have the scheduler find a node for the head, and the kubelet say in an event what keeps it."""
    pod = head(world)
    assert pod is not None
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}
    say_of_head(world, phase="Pending", conditions=[bound])
    said = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "hangs", "namespace": world.namespace},
        "involvedObject": {
            "kind": "Pod",
            **{key: pod["metadata"][key] for key in ("namespace", "name", "uid")},
        },
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "hub" : secret "hub-token" not found',
        "type": "Warning",
    }
    world.hands.create(CORE_EVENTS, namespace=world.namespace, body=said, manager="kubelet")


def test_events_are_read_of_a_pod_that_hangs_and_of_no_other(world: World) -> None:
    world.start()
    world.wait(lambda: head(world), seconds=60)
    settles_at(world, "ClusterStarting")
    hangs(world)
    with world.requests.during() as early:
        waits_for = world.step().requeue_after
    assert early == []
    assert waits_for is not None
    assert waits_for <= 20
    world.pass_time(30)
    with world.requests.during() as asked:
        world.settle()
    (question,) = [url for method, url in asked if method == "GET"]
    assert "/events?fieldSelector=regarding.uid" in question
    assert world.reason("ClusterReady") == ("False", "SecretMissing")
    assert '"hub-token"' in world.condition("ClusterReady")["message"]
    with world.requests.during() as again:
        world.step()
    assert again == []
    say_of_head(world, phase="Running")
    world.settle()
    assert world.reason("ClusterReady") == ("Unknown", "ClusterStarting")


def test_a_quota_on_pods_is_named_and_its_end_is_noticed(world: World) -> None:
    with world.quota("small", hard={"pods": "0"}):
        world.start()
        settles_at(world, "QuotaExceeded")
        assert "small" in world.condition("ClusterReady")["message"]
    settles_at(world, "ClusterStarting")


def test_a_service_account_that_is_missing_is_named_and_made_up_for(world: World) -> None:
    world.start(compute={"serviceAccountName": "bucket-reader"})
    settles_at(world, "ServiceAccountMissing")
    assert "bucket-reader" in world.condition("ClusterReady")["message"]
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "bucket-reader", "namespace": world.namespace},
    }
    world.hands.create(ACCOUNTS, namespace=world.namespace, body=account, manager="person")
    settles_at(world, "ClusterStarting")


def test_kuberay_takes_pods_away_and_gives_them_back_and_all_goes_with_the_run(world: World) -> None:
    world.start()
    world.wait(lambda: head(world), seconds=60)
    world.edit(suspend=True)
    settles_at(world, "Suspended", condition="Admitted")
    world.wait(lambda: head(world) is None, seconds=60)
    world.wait(lambda: world.job()["status"]["jobDeploymentStatus"] == "Suspended", seconds=60)
    world.edit(suspend=False)
    world.settle()
    world.wait(lambda: head(world), seconds=60)
    world.delete()

    def gone() -> bool:
        world.settle()
        return not world.exists()

    world.wait(gone, seconds=60)
    assert world.jobs() == []
    assert world.hands.list(PODS, namespace=world.namespace) == []


@pytest.fixture
def bare_world(tmp_path: Path, tracking_uri: str) -> Iterator[World]:
    """A cluster that has never heard of KubeRay."""
    with running_api_server(tmp_path / "bare") as cluster, cluster.namespace() as namespace:
        cluster.install_definitions(CRD)
        made = BareWorld(
            api=connect(kubeconfig=cluster.kubeconfig),
            hands=connect(kubeconfig=cluster.kubeconfig),
            namespace=namespace,
            tracking_uri=tracking_uri,
            directory=tmp_path,
        )
        made.cluster = cluster
        yield made


class BareWorld(World):
    """Lists what there is to be listed."""

    cluster: Cluster

    def close(self) -> None:
        self.operator.close()


def test_a_cluster_without_kuberay_is_told_so_until_it_has_one(bare_world: BareWorld) -> None:
    world = bare_world
    world.hands = ForgivingClient(api=connect(kubeconfig=world.cluster.kubeconfig), seconds=30)
    world.start()
    assert world.reason("ClusterReady") == ("False", "KubeRayMissing")
    assert world.look().requeue_after is not None
    install_kuberay_definitions(world.cluster)
    world.pass_time(60)
    world.settle()
    assert len(world.jobs()) == 1
    assert world.reason("ClusterReady") == ("Unknown", "ClusterStarting")


class ForgivingClient(KubeClient):
    """Lists nothing where a kind is not known, as a watch that waits for it."""

    def list(self, resource: Resource, *, namespace: str, selector: str = "") -> list[Mapping[str, Any]]:
        try:
            return list(super().list(resource, namespace=namespace, selector=selector))
        except NotFoundError:
            return []
