"""The metrics: everything there from the start, nothing unbounded in a label, what is told is counted."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ireko_operator.kube.keys import Kind
from ireko_operator.process.backlog import Depth
from ireko_operator.process.metrics import Metrics, State
from ireko_operator.telemetry import API_WRITES

DEPTH = Depth(due=3, later=5, running=1, oldest_due=2.5, longest_run=1.0)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.registry.register(
        State(
            depth=lambda: DEPTH,
            phases=lambda: {"Running": 2},
            watched=lambda: {Kind.RUNS: 1e9, Kind.PODS: None},
            leading=lambda: True,
        )
    )
    return metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_series_of_a_counter_is_there_before_anything_happened(metrics: Metrics) -> None:
    before = samples(metrics)
    metrics.passed("changed", 0.1)
    metrics.passed("fenced", 0.1)
    metrics.retried()
    metrics.attempt("Failed")
    metrics.registration("refused", 1.0)
    metrics.run_finished("Deleted", 60.0)
    metrics.tracking("unreachable")
    metrics.watch_error(Kind.WORKLOADS)
    metrics.watch_restarts.inc()
    for resource, verb in API_WRITES:
        metrics.api_write(resource, verb)
    after = samples(metrics)
    assert set(after) == set(before)
    assert {name for name, _ in before if name.endswith("_total") and not name.startswith("process_")} == {
        name
        for (name, labels), value in after.items()
        if name.endswith("_total") and value > before[name, labels]
    } - {"process_cpu_seconds_total"}


def test_state_is_read_when_it_is_asked_for(metrics: Metrics) -> None:
    values = samples(metrics)
    assert values["ireko_queue_depth", ()] == 3
    assert values["ireko_queue_oldest_seconds", ()] == 2.5
    assert values["ireko_leader", ()] == 1
    assert values["ireko_runs", (("phase", "Running"),)] == 2
    assert values["ireko_runs", (("phase", "Failed"),)] == 0
    assert values["ireko_watched", (("resource", "pods"),)] == 1
    assert values["ireko_watched", (("resource", "rayjobs"),)] == 0


def test_a_watch_that_has_heard_nothing_yet_shows_no_time(metrics: Metrics) -> None:
    heard = {
        labels: value
        for (name, labels), value in samples(metrics).items()
        if name.endswith("event_timestamp_seconds")
    }
    assert heard == {(("resource", "compressionruns"),): 1e9}
