"""Runs that queue, with Kueue's real manager beside KubeRay's real operator: only the pods' part is played."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ireko_operator.kube.client import connect
from ireko_operator.kube.keys import Resource
from play import trainer
from play.process import OperatorProcess, installed_account
from play.world import CLUSTERS, PODS, WORKLOADS, World, manifest
from rig.api_server import Cluster, running_api_server
from rig.fixtures import CRD, skipping
from rig.kuberay import running_kuberay
from rig.kueue import running_kueue

QUEUE = "gpus"
QUEUED = {"queueName": QUEUE}
CLUSTER_QUEUES = Resource(group="kueue.x-k8s.io", version="v1beta2", plural="clusterqueues")
FLAVOR = {
    "apiVersion": "kueue.x-k8s.io/v1beta2",
    "kind": "ResourceFlavor",
    "metadata": {"name": "default"},
}
URGENT = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "urgent"},
    "value": 1000,
}
SMALL, ENOUGH_FOR_ONE = "100m", "3"


class QueueingWorld(World):
    """A namespace with a queue of its own."""

    watched = (*World.watched, WORKLOADS)
    cluster: Cluster

    def queue(self, *, cpu: str) -> None:
        """Make the queue, or change how much it has to give away."""
        quota = [
            {"name": "cpu", "nominalQuota": cpu},
            {"name": "memory", "nominalQuota": "100Gi"},
        ]
        flavors = [{"name": "default", "resources": quota}]
        cluster_queue = {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "ClusterQueue",
            "metadata": {"name": self.namespace},
            "spec": {
                "namespaceSelector": {},
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "resourceGroups": [{"coveredResources": ["cpu", "memory"], "flavors": flavors}],
            },
        }
        local_queue = {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "LocalQueue",
            "metadata": {"name": QUEUE, "namespace": self.namespace},
            "spec": {"clusterQueue": self.namespace},
        }
        self.cluster.apply_all([cluster_queue, local_queue])

    def workloads(self) -> list[Mapping[str, Any]]:
        return list(self.hands.list(WORKLOADS, namespace=self.namespace))

    def used(self) -> str:
        """How many cores of the queue's quota are in use."""
        found = self.cluster.kubectl(
            "get",
            "clusterqueue",
            self.namespace,
            "-o",
            "jsonpath={.status.flavorsUsage[0].resources[?(@.name=='cpu')].total}",
        )
        return found.stdout

    def head(self, name: str) -> bool:
        """Whether the run has a head pod."""
        labels = f"ray.io/node-type=head,ireko.dev/run={name}"
        return bool(self.hands.list(PODS, namespace=self.namespace, selector=labels))

    def until(self, holds: Callable[[], bool], *names: str) -> None:
        """Wait for Kueue and KubeRay while the operator looks at `names`."""

        def reached() -> bool:
            for name in names or ("demo",):
                self.settle(name)
            return holds()

        self.wait(reached, seconds=90)

    def until_reason(self, condition: str, status: str, reason: str, *, name: str = "demo") -> None:
        self.until(lambda: self.reason(condition, name) == (status, reason), name)


@pytest.fixture(scope="module")
def queueing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server of their own for KubeRay and Kueue, whose webhooks would be in the way of other tests."""
    directory = tmp_path_factory.mktemp("queueing")
    with skipping("API tier"), running_api_server(directory / "api-server") as cluster:
        cluster.install_definitions(CRD)
        with (
            running_kuberay(cluster, directory / "kuberay.log"),
            running_kueue(cluster, directory / "kueue.log"),
        ):
            cluster.apply_all([FLAVOR, URGENT])
            yield cluster


@pytest.fixture
def world(queueing: Cluster, tracking_uri: str, tmp_path: Path) -> Iterator[QueueingWorld]:
    with queueing.namespace() as namespace:
        made = QueueingWorld(
            api=connect(kubeconfig=queueing.kubeconfig),
            hands=connect(kubeconfig=queueing.kubeconfig),
            namespace=namespace,
            tracking_uri=tracking_uri,
            directory=tmp_path,
        )
        made.cluster = queueing
        yield made
        made.close()


def condition(workload: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    (found,) = [item for item in workload["status"]["conditions"] if item["type"] == kind]
    return dict(found)


def test_a_run_waits_for_quota_in_kueues_words_until_kueue_lets_it_go(world: QueueingWorld) -> None:
    world.queue(cpu=SMALL)
    world.start(compute=QUEUED)
    world.until(lambda: "insufficient quota" in world.condition("Admitted")["message"])
    assert world.reason("Admitted") == ("False", "QueuePending")
    (workload,) = world.workloads()
    said = condition(workload, "QuotaReserved")
    assert (
        f"({said['reason']}): {' '.join(said['message'].split())}" in world.condition("Admitted")["message"]
    )
    assert world.job()["spec"]["suspend"] is True
    assert world.hands.list(CLUSTERS, namespace=world.namespace) == []
    with world.requests.during() as made:
        world.look()
    assert made == []

    world.queue(cpu=ENOUGH_FOR_ONE)
    world.until_reason("Admitted", "True", "QuotaReserved")
    assert not world.job()["spec"].get("suspend")
    assert "kueue" in {entry["manager"] for entry in world.job()["metadata"]["managedFields"]}
    assert "patch rayjobs" not in world.telemetry.writes
    world.until(lambda: world.head("demo"))
    assert world.reason("ClusterReady") == ("Unknown", "ClusterStarting")


def test_a_queue_that_does_not_exist_is_named(world: QueueingWorld) -> None:
    world.start(compute=QUEUED)
    world.until(lambda: "doesn't exist" in world.condition("Admitted")["message"])
    assert world.reason("Admitted") == ("False", "QueuePending")
    world.queue(cpu=ENOUGH_FOR_ONE)
    world.until_reason("Admitted", "True", "QuotaReserved")


def test_a_pause_gives_the_quota_back_and_its_end_queues_anew(world: QueueingWorld) -> None:
    world.queue(cpu=ENOUGH_FOR_ONE)
    world.start(compute=QUEUED)
    world.until(lambda: world.head("demo"))
    world.until(lambda: world.used() not in ("", "0"))
    world.edit(suspend=True)
    world.until(lambda: world.workloads() == [])
    assert world.reason("Admitted") == ("False", "Suspended")
    world.until(lambda: world.used() == "0")
    world.edit(suspend=False)
    world.until_reason("Admitted", "True", "QuotaReserved")
    assert [attempt["outcome"] for attempt in world.status()["attempts"]] == ["Interrupted", "Running"]


def test_a_run_that_is_deleted_gives_its_place_to_the_next_in_the_queue(world: QueueingWorld) -> None:
    world.queue(cpu=ENOUGH_FOR_ONE)
    world.start(compute=QUEUED)
    world.until_reason("Admitted", "True", "QuotaReserved")
    world.start("next", compute=QUEUED)
    world.until(lambda: "insufficient unused quota" in world.condition("Admitted", "next")["message"], "next")
    world.delete()
    world.until(lambda: not world.exists())
    world.until_reason("Admitted", "True", "QuotaReserved", name="next")
    assert len(world.workloads()) == 1


def test_a_run_that_ends_gives_its_quota_back(world: QueueingWorld) -> None:
    world.queue(cpu=ENOUGH_FOR_ONE)
    world.start(compute=QUEUED)
    world.until(lambda: world.head("demo"))
    trainer.finish(world.request(), artifacts=world.directory / "artifacts", scratch=world.directory)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    world.play("Complete", "SUCCEEDED", endTime=now)  # KubeRay does the rest
    world.until(lambda: world.status().get("phase") == "Succeeded")
    world.until(lambda: world.used() == "0")
    (workload,) = world.workloads()
    assert condition(workload, "Finished")["status"] == "True"


def test_a_run_that_a_more_urgent_one_displaces_says_so_and_goes_on_afterwards(world: QueueingWorld) -> None:
    world.queue(cpu=ENOUGH_FOR_ONE)
    world.start(compute=QUEUED)
    world.until(lambda: world.head("demo"))
    world.start("urgent", compute={**QUEUED, "priorityClassName": "urgent"})
    world.until_reason("Admitted", "False", "Preempted")
    assert "Preempted" in world.condition("Admitted")["message"]
    world.until(lambda: not world.head("demo"))
    world.until_reason("Admitted", "True", "QuotaReserved", name="urgent")
    world.delete("urgent")
    world.until(lambda: not world.exists("urgent"), "urgent")
    world.until_reason("Admitted", "True", "QuotaReserved")
    world.until(lambda: world.head("demo"))
    (attempt,) = world.status()["attempts"]
    assert attempt["outcome"] == "Running"
    assert "patch rayjobs" not in world.telemetry.writes


def test_the_process_hears_of_kueue_under_the_charts_account(
    queueing: Cluster, world: QueueingWorld, tmp_path: Path
) -> None:
    def admitted() -> Mapping[str, Any]:
        conditions = world.status().get("conditions", ())
        return next((item for item in conditions if item["type"] == "Admitted"), {})

    world.queue(cpu=SMALL)
    with installed_account(queueing, directory=tmp_path / "helm") as account:
        operator = OperatorProcess(
            kubeconfig=account,
            log=tmp_path / "operator.log",
            options=["--tracking-uri=http://127.0.0.1:9", "--no-leader-elect"],
        )
        try:
            operator.wait_leading()
            world.apply(manifest(compute=QUEUED))
            world.wait(lambda: "insufficient quota" in admitted().get("message", ""), seconds=90)
            world.queue(cpu=ENOUGH_FOR_ONE)
            world.wait(lambda: admitted().get("reason") == "QuotaReserved", seconds=90)
            assert not [line for line in operator.complaints() if "forbidden" in line.lower()]
        finally:
            operator.kill()
