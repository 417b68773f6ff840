"""What the operator asks a real API server beside its watches: kinds, versions in pages, rights."""

from __future__ import annotations

import pytest

from ireko_operator.kube.client import KubeClient, connect
from ireko_operator.kube.keys import JOBS, RUNS, Key, Kind, Resource
from ireko_operator.process import inquiry as module
from ireko_operator.process.inquiry import Inquiry, Right
from ireko_operator.process.prober import Prober
from ireko_operator.process.sight import Sight
from ireko_operator.process.watched import Served
from play.world import manifest
from rig.api_server import Cluster


@pytest.fixture
def hands(api_server: Cluster) -> KubeClient:
    return KubeClient(api=connect(kubeconfig=api_server.kubeconfig), seconds=30)


@pytest.fixture
def inquiry(api_server: Cluster) -> Inquiry:
    return Inquiry(kubeconfig=api_server.kubeconfig, seconds=30)


def create(hands: KubeClient, namespace: str, name: str) -> str:
    body = hands.create(RUNS, namespace=namespace, body=manifest(name), manager="person")
    uid: str = body["metadata"]["uid"]
    return uid


def test_versions_of_all_objects_come_in_pages(
    inquiry: Inquiry, hands: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    uids = {(namespace, name): create(hands, namespace, name) for name in ("a", "b", "c", "d", "e")}
    marks = inquiry.marks(RUNS, namespaces=[namespace], selector="")
    assert {key: mark.uid for key, mark in marks.items()} == uids
    everywhere = inquiry.marks(RUNS, namespaces=[], selector="")
    assert marks.items() <= everywhere.items()
    assert inquiry.marks(RUNS, namespaces=[namespace], selector="no=such") == {}


def test_kinds_are_known_or_not(inquiry: Inquiry) -> None:
    assert inquiry.serves(RUNS)
    assert inquiry.serves(JOBS)
    assert inquiry.serves(Resource(group="", version="v1", plural="pods"))
    assert not inquiry.serves(Resource(group="ray.io", version="v1", plural="nothing"))
    assert not inquiry.serves(Resource(group="nobody.example", version="v1", plural="things"))


def test_rights_are_those_of_the_account(api_server: Cluster, inquiry: Inquiry, namespace: str) -> None:
    right = Right(
        verb="patch", group=RUNS.group, resource=RUNS.plural, subresource="status", namespace=namespace
    )
    assert inquiry.may(right)
    assert str(right) == "patch compressionruns/status.ireko.dev"
    assert not Inquiry(kubeconfig=api_server.user("somebody"), seconds=30).may(right)


def test_what_the_watches_missed_is_found(inquiry: Inquiry, hands: KubeClient, namespace: str) -> None:
    """No watch runs here: what it would have delivered, or not, is the test's to say."""
    time = [0.0]
    sight, served, gone = Sight(clock=lambda: time[0]), list[Served](), list[tuple[Kind, Key, str]]()
    prober = Prober(
        inquiry=inquiry,
        namespaces=[namespace],
        sight=sight,
        watch=served.append,
        gone=lambda kind, key, uid: gone.append((kind, key, uid)),
        clock=lambda: time[0],
    )
    uid = create(hands, namespace, "demo")
    prober.ask()
    assert [set(kinds) for kinds in served] == [{Kind.RUNS, Kind.JOBS, Kind.CLUSTERS, Kind.PODS}]
    assert not sight.synced()
    time[0] = 100.0
    assert sight.deaf()[Kind.RUNS] == 100.0

    sight.deliver(Kind.RUNS, None, hands.get(RUNS, namespace=namespace, name="demo"))
    prober.ask()
    assert sight.synced()
    assert sight.deaf()[Kind.RUNS] == 0.0

    hands.delete(RUNS, namespace=namespace, name="demo", uid=uid)
    for _ in range(3):
        time[0] += 60.0
        prober.ask()
    assert gone == [(Kind.RUNS, (namespace, "demo"), uid)]
    assert len(served) == 1
