"""When a process is ill, when it is not ready, and the server that says so."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Gauge

from ireko_operator.errors import OperatorError
from ireko_operator.kube.keys import Kind
from ireko_operator.process.backlog import Depth
from ireko_operator.process.health import Vitals, find_ailments, find_hindrances
from ireko_operator.process.server import HealthServer

IDLE = Depth(due=0, later=3, running=0, oldest_due=0.0, longest_run=0.0)
WELL = Vitals(leading=True, synced=True, depth=IDLE)
STANDBY = Vitals(leading=False)


@pytest.mark.parametrize(
    "vitals",
    [
        WELL,
        replace(WELL, since_last_finish=1e6),  # nothing to do for days
        replace(WELL, depth=replace(IDLE, due=900, oldest_due=600.0), since_last_finish=0.2),  # a herd
        replace(WELL, deaf={Kind.PODS: 100.0}, watches_down=60.0),  # it mends that itself
        replace(WELL, stopping=True, dead=("prober",)),
        STANDBY,
        replace(STANDBY, lease_reachable=False, watches_down=1e6),
    ],
)
def test_these_are_well(vitals: Vitals) -> None:
    assert find_ailments(vitals) == []


@pytest.mark.parametrize(
    ("vitals", "sentence"),
    [
        (replace(WELL, dead=("lease",)), "The thread `lease` has ended"),
        (replace(STANDBY, dead=("lease",)), "The thread `lease` has ended"),
        (replace(WELL, watches_down=200.0), "The watches have not run for 200 s"),
        (replace(WELL, deaf={Kind.PODS: 300.0}), "The watch of pods is deaf"),
        (
            replace(WELL, depth=replace(IDLE, due=1, oldest_due=400.0), since_last_finish=300.0),
            "The queue is stuck: a run has waited for 400 s and no pass has ended for 300 s",
        ),
        (replace(WELL, depth=replace(IDLE, running=1, longest_run=1000.0)), "A worker hangs"),
    ],
)
def test_these_need_a_restart_and_say_why(vitals: Vitals, sentence: str) -> None:
    (ailment,) = find_ailments(vitals)
    assert sentence in ailment


@pytest.mark.parametrize(
    ("vitals", "sentence"),
    [
        (WELL, None),
        (STANDBY, None),
        (replace(WELL, synced=False), "has not been read completely"),
        (replace(STANDBY, lease_reachable=False), "The Lease could not be read"),
        (replace(WELL, stopping=True), "stopping"),
    ],
)
def test_ready_is_who_works_or_could_take_over(vitals: Vitals, sentence: str | None) -> None:
    hindrances = find_hindrances(vitals)
    assert len(hindrances) == (sentence is not None)
    assert sentence is None or sentence in hindrances[0]


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "To everything", registry=registry).set(42)
    return registry


def serve(registry: CollectorRegistry, healthy: Callable[[], list[str]], *, port: int = 0) -> HealthServer:
    return HealthServer(
        host="127.0.0.1", port=port, registry=registry, healthy=healthy, ready=lambda: ["Not yet."]
    )


def test_the_server_tells_health_readiness_and_metrics(registry: CollectorRegistry) -> None:
    complaints: list[str] = []
    server = serve(registry, lambda: complaints)
    server.start()
    try:
        assert ask(server.port, "/healthz") == (200, "ok\n")
        complaints += ["This.", "That."]
        assert ask(server.port, "/healthz") == (503, "This.\nThat.\n")
        assert ask(server.port, "/readyz") == (503, "Not yet.\n")
        status, text = ask(server.port, "/metrics")
        assert status == 200
        assert "answer 42.0" in text
        assert ask(server.port, "/secrets")[0] == 404
    finally:
        server.stop()


def test_a_port_that_is_taken_is_named(registry: CollectorRegistry) -> None:
    first = serve(registry, list)
    first.start()
    try:
        with pytest.raises(OperatorError, match=f"127.0.0.1:{first.port}.*choose another --host or --port"):
            serve(registry, list, port=first.port)
    finally:
        first.stop()
