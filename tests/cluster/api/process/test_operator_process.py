"""The real process against a real API server: rights, leadership, outages, and how it ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes.client import CoordinationV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from play.process import OperatorProcess, installed_account
from play.world import manifest
from rig.api_server import Cluster, running_api_server
from rig.errors import UnavailableError
from rig.fixtures import CRD
from rig.kubeconfig import write_kubeconfig
from rig.kuberay import install_kuberay_definitions
from rig.processes import free_port, wait_until

StartOperator = Callable[..., OperatorProcess]
LEASE_SECONDS, DEADLINE_SECONDS = 15.0, 10.0
NOBODY = "http://127.0.0.1:9"
"""An address where no MLflow answers."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartOperator]:
    """Start operators; whatever a test does to them, they are gone afterwards."""
    started: list[OperatorProcess] = []

    def begin(kubeconfig: Path, *options: str) -> OperatorProcess:
        log = tmp_path / f"operator-{len(started)}.log"
        options = (f"--tracking-uri={NOBODY}", *options)
        started.append(OperatorProcess(kubeconfig=kubeconfig, log=log, options=options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def account(api_server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The chart's account, cluster-wide."""
    try:
        with installed_account(api_server, directory=tmp_path_factory.mktemp("helm")) as kubeconfig:
            yield kubeconfig
    except UnavailableError as reason:
        pytest.skip(f"no account from the chart: {reason}")


@pytest.fixture
def lease(namespace: str) -> tuple[str, ...]:
    """Options for a Lease of the test's own, in a namespace of the test's own."""
    return ("--lease-name=ireko", f"--lease-namespace={namespace}")


def apply_run(cluster: Cluster, namespace: str, name: str = "demo") -> None:
    wanted = manifest(name)
    wanted["metadata"]["namespace"] = namespace
    cluster.apply("-f", "-", manifest=wanted)


def jobs(cluster: Cluster, namespace: str) -> list[str]:
    try:
        found = CustomObjectsApi(cluster.api_client()).list_namespaced_custom_object(
            "ray.io", "v1", namespace, "rayjobs"
        )
    except ApiException as refusal:
        if refusal.status == 404:  # no RayJobs are known at all
            return []
        raise
    return [item["metadata"]["name"] for item in found["items"]]


def wait_for_job(cluster: Cluster, namespace: str, operator: OperatorProcess, *, timeout: float = 60) -> None:
    wait_until(lambda: bool(jobs(cluster, namespace)), what="a RayJob", timeout=timeout, watched=[operator])


def holder(cluster: Cluster, namespace: str) -> str:
    lease = CoordinationV1Api(cluster.api_client()).read_namespaced_lease("ireko", namespace)
    return lease.spec.holder_identity or ""


def test_it_works_under_the_charts_account(
    api_server: Cluster, account: Path, namespace: str, start: StartOperator
) -> None:
    operator = start(account, "--no-leader-elect")
    operator.wait_leading()
    apply_run(api_server, namespace)
    wait_for_job(api_server, namespace, operator)
    assert operator.ask("/healthz") == (200, "ok\n")
    assert operator.metric("ireko_api_writes_total", resource="rayjobs", verb="create") == 1
    assert operator.metric("ireko_reconcile_total", result="error") == 0
    wait_until(lambda: operator.metric("ireko_runs") == 1, what="the run in the metrics", timeout=10)
    about_runs = [line["run"] for line in operator.lines() if "run" in line]
    assert all((run["namespace"], run["name"]) == (namespace, "demo") for run in about_runs)
    assert not [line for line in operator.complaints() if "forbidden" in line.lower()]


def test_one_of_two_operators_works_and_the_other_stands_by(
    api_server: Cluster, namespace: str, lease: tuple[str, ...], start: StartOperator
) -> None:
    pair = [start(api_server.kubeconfig, *lease) for _ in range(2)]
    for operator in pair:
        operator.wait_ready()
    wait_until(lambda: any(one.leading for one in pair), what="a leader", timeout=30, watched=pair)
    leader, standby = sorted(pair, key=lambda one: not one.leading)
    assert not standby.leading
    apply_run(api_server, namespace)
    wait_for_job(api_server, namespace, leader)
    assert standby.metric("ireko_api_writes_total") == 0
    assert standby.metric("ireko_watched") == 0
    assert standby.ask("/healthz")[0] == 200

    leader.kill()
    died = time.monotonic()
    wait_until(lambda: standby.leading, what="a successor", timeout=90, watched=[standby])
    assert time.monotonic() - died >= DEADLINE_SECONDS, "nobody takes a Lease that its holder may still use"
    standby.wait_leading()
    apply_run(api_server, namespace, "second")
    wait_until(
        lambda: len(jobs(api_server, namespace)) == 2, what="the second run", timeout=60, watched=[standby]
    )


def test_an_operator_that_is_asked_to_stop_hands_over_at_once(
    api_server: Cluster, namespace: str, lease: tuple[str, ...], start: StartOperator
) -> None:
    first = start(api_server.kubeconfig, *lease)
    first.wait_leading()
    second = start(api_server.kubeconfig, *lease)
    second.wait_ready()
    first.send(signal.SIGTERM)
    assert first.wait_end() == 0
    stopped = time.monotonic()
    wait_until(lambda: second.leading, what="a successor", timeout=60, watched=[second])
    assert time.monotonic() - stopped < LEASE_SECONDS, "the Lease was given back"
    second.send(signal.SIGTERM)
    assert second.wait_end() == 0
    assert holder(api_server, namespace) == ""


def test_an_operator_whose_lease_is_taken_from_it_ends_with_an_error(
    api_server: Cluster, namespace: str, lease: tuple[str, ...], start: StartOperator
) -> None:
    operator = start(api_server.kubeconfig, *lease)
    operator.wait_leading()
    thief = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "ireko"}}
    api_server.apply("-n", namespace, "-f", "-", manifest={**thief, "spec": {"holderIdentity": "thief"}})
    assert operator.wait_end() == 1
    assert any("The Lease is lost (thief holds it)" in line for line in operator.complaints())
    assert holder(api_server, namespace) == "thief"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server that a test may break."""
    try:
        with running_api_server(tmp_path_factory.mktemp("own-server")) as cluster:
            yield cluster
    except UnavailableError as reason:
        pytest.skip(f"API tier not run: {reason}")


def test_it_says_what_is_missing_and_begins_once_it_is_there(
    own_server: Cluster, start: StartOperator, tmp_path: Path
) -> None:
    def refusal(kubeconfig: Path, *options: str) -> str:
        operator = start(kubeconfig, *options)
        assert operator.wait_end() == 1
        return " ".join(operator.log.read_text().split())

    absent = write_kubeconfig(
        tmp_path / "absent",
        url=f"https://127.0.0.1:{free_port()}",
        authority=own_server.ca,
        user={"token": "x"},
    )
    assert "The Kubernetes API server cannot be used" in refusal(absent)
    assert "ireko crd | kubectl apply --server-side -f -" in refusal(own_server.kubeconfig)

    own_server.install_definitions(CRD)
    nobody = refusal(own_server.user("nobody"), "--lease-namespace=default", "--namespace=default")
    for right in (
        "patch compressionruns/status.ireko.dev in namespace default",
        "create leases.coordination.k8s.io",
    ):
        assert right in nobody
    assert "in all namespaces" not in nobody

    with (
        own_server.namespace() as team,
        own_server.namespace() as elsewhere,
        installed_account(own_server, directory=tmp_path / "helm", watch=[team]) as account,
    ):
        assert "in all namespaces" in refusal(account, "--no-leader-elect")
        operator = start(account, "--no-leader-elect", f"--namespace={team}")
        operator.wait_leading()
        assert operator.metric("ireko_watched", resource="rayjobs") == 0
        assert any("KubeRay is not installed" in line for line in operator.complaints())
        apply_run(own_server, team)
        apply_run(own_server, elsewhere)
        wait_until(lambda: operator.metric("ireko_runs", phase="Pending") == 1, what="the run", timeout=30)
        install_kuberay_definitions(own_server)
        wait_for_job(own_server, team, operator, timeout=120)
        assert operator.metric("ireko_watched", resource="rayjobs") == 1
        assert operator.metric("ireko_watch_restarts_total") == 0
        assert jobs(own_server, elsewhere) == []
        assert operator.ask("/healthz")[0] == 200


def test_a_restart_of_the_api_server_is_survived(own_server: Cluster, start: StartOperator) -> None:
    own_server.install_definitions(CRD)
    install_kuberay_definitions(own_server)
    with own_server.namespace() as namespace:
        operator = start(own_server.kubeconfig, "--no-leader-elect")
        operator.wait_leading()
        own_server.restart()
        apply_run(own_server, namespace)
        wait_for_job(own_server, namespace, operator, timeout=90)
        assert operator.ask("/healthz")[0] == 200


def test_a_leader_that_cannot_renew_stops_before_its_lease_ends_for_others(
    own_server: Cluster, start: StartOperator
) -> None:
    own_server.install_definitions(CRD)
    operator = start(own_server.kubeconfig, "--lease-namespace=default")
    operator.wait_leading()
    own_server.stop_api()
    cut = time.monotonic()
    try:
        assert operator.wait_end() == 1
        assert time.monotonic() - cut < LEASE_SECONDS
        assert any(
            "The Lease is lost (it could not be renewed in time)" in line for line in operator.complaints()
        )
    finally:
        own_server.start_api()
