"""What the operator counts, in the registry of this process that /metrics shows.

Every series exists from the start, so that a rate over a counter sees its first increase. No label takes a value that
comes from a user: names of runs and their namespaces are in the logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ireko_api.status import Phase
from ireko_operator.kube.keys import Kind
from ireko_operator.process.backlog import Depth
from ireko_operator.process.workers import PASS_RESULTS, PassResult
from ireko_operator.telemetry import (
    API_WRITES,
    ATTEMPT_OUTCOMES,
    REGISTRATION_RESULTS,
    RUN_OUTCOMES,
    TRACKING_RESULTS,
    AttemptOutcome,
    RegistrationResult,
    RunOutcome,
    TrackingResult,
)

_PASS_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_REGISTRATION_BUCKETS = (0.5, 2.0, 10.0, 30.0, 120.0, 600.0)
_RUN_BUCKETS = (60.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 72 * 3600.0, 168 * 3600.0)


class Metrics:
    """The counters; told by the reconcile (`Telemetry`) and by the workers (`PassTelemetry`)."""

    def __init__(self) -> None:
        without_times_of_creation: Callable[[], None] = disable_created_metrics
        without_times_of_creation()  # the start of the process is a metric already
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._passes = self._counter("reconcile", "Passes over a run", "result")
        self._pass_seconds = Histogram(
            "ireko_reconcile_duration_seconds",
            "Duration of a pass over a run",
            buckets=_PASS_BUCKETS,
            registry=self.registry,
        )
        self._retries = self._counter("queue_retries", "Passes that failed and are repeated")
        self._attempts = self._counter(
            "attempts", "Attempts that were started, and how they ended", "outcome"
        )
        self._run_seconds = Histogram(
            "ireko_run_duration_seconds",
            "Time from the creation of a run to its end",
            ("outcome",),
            buckets=_RUN_BUCKETS,
            registry=self.registry,
        )
        self._registrations = self._counter("registrations", "Registrations of a family of models", "result")
        self._registration_seconds = Histogram(
            "ireko_registration_duration_seconds",
            "Duration of the registration of a family",
            buckets=_REGISTRATION_BUCKETS,
            registry=self.registry,
        )
        self._tracking = self._counter("tracking_requests", "Questions to MLflow", "result")
        self._writes = self._counter("api_writes", "Writes sent to the API server", "resource", "verb")
        self._watch_errors = self._counter(
            "watch_errors", "Events of a watch that could not be understood", "resource"
        )
        self.watch_restarts = self._counter("watch_restarts", "Times that all watches were started anew")
        self._initialise()

    def passed(self, result: PassResult, seconds: float) -> None:
        """A pass ended."""
        self._passes.labels(result).inc()
        self._pass_seconds.observe(seconds)

    def retried(self) -> None:
        """A pass that failed will be repeated."""
        self._retries.inc()

    def api_write(self, resource: str, verb: str) -> None:
        """A write was sent to the API server, whatever came back."""
        self._writes.labels(resource, verb).inc()

    def attempt(self, outcome: AttemptOutcome) -> None:
        """An attempt was started or was seen to have ended."""
        self._attempts.labels(outcome).inc()

    def registration(self, result: RegistrationResult, seconds: float) -> None:
        """A registration of a family ended."""
        self._registrations.labels(result).inc()
        self._registration_seconds.observe(seconds)

    def run_finished(self, outcome: RunOutcome, seconds: float) -> None:
        """A run came to its end, that long after it was created."""
        self._run_seconds.labels(outcome).observe(seconds)

    def tracking(self, result: TrackingResult) -> None:
        """MLflow was asked something."""
        self._tracking.labels(result).inc()

    def watch_error(self, kind: Kind) -> None:
        """An event could not be understood."""
        self._watch_errors.labels(kind.value).inc()

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"ireko_{name}", help_text, labels, registry=self.registry)

    def _initialise(self) -> None:
        for counter, words in (
            (self._passes, PASS_RESULTS),
            (self._attempts, ATTEMPT_OUTCOMES),
            (self._registrations, REGISTRATION_RESULTS),
            (self._tracking, TRACKING_RESULTS),
            (self._watch_errors, tuple(Kind)),
        ):
            for word in words:
                counter.labels(str(word))
        for resource, verb in API_WRITES:
            self._writes.labels(resource, verb)
        for outcome in RUN_OUTCOMES:
            self._run_seconds.labels(outcome)
        info = Gauge("ireko_build_info", "The version of Ireko", ("version",), registry=self.registry)
        info.labels(version("ireko")).set(1)


class State(Collector):
    """Gauges that are read off the process when somebody asks for them."""

    def __init__(
        self,
        *,
        depth: Callable[[], Depth],
        phases: Callable[[], Mapping[str, int]],
        watched: Callable[[], Mapping[Kind, float | None]],
        leading: Callable[[], bool],
    ) -> None:
        """`watched` gives, for every watched kind, when its watch was last known to deliver (Unix time)."""
        self._depth = depth
        self._phases = phases
        self._watched = watched
        self._leading = leading

    def collect(self) -> Iterable[Metric]:
        """The gauges as they are now."""
        depth, phases, watched = self._depth(), self._phases(), self._watched()
        yield GaugeMetricFamily("ireko_queue_depth", "Runs that wait for a worker", depth.due)
        yield GaugeMetricFamily(
            "ireko_queue_oldest_seconds", "Time that the longest waiting run has waited", depth.oldest_due
        )
        yield GaugeMetricFamily(
            "ireko_leader", "Whether this process is the one that works", float(self._leading())
        )
        runs = GaugeMetricFamily("ireko_runs", "Runs by phase", labels=["phase"])
        for phase in get_args(Phase):
            runs.add_metric([phase], phases.get(phase, 0))
        yield runs
        served = GaugeMetricFamily(
            "ireko_watched",
            "Whether a kind is watched: 0 where the API server does not know it",
            labels=["resource"],
        )
        heard = GaugeMetricFamily(
            "ireko_watch_last_event_timestamp_seconds",
            "When the watch last delivered an event or was found to have delivered everything",
            labels=["resource"],
        )
        for kind in Kind:
            served.add_metric([kind.value], float(kind in watched))
            moment = watched.get(kind)
            if moment is not None:  # a time that never was would look like a watch that is deaf since 1970
                heard.add_metric([kind.value], moment)
        yield served
        yield heard
