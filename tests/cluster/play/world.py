"""A real API server, a real reconcile, and hands that do what watches, KubeRay and the trainer would do.

Nothing happens by itself here: a test says when the operator hears of something, when it looks, and what
KubeRay makes of a RayJob. So every order of events can be had, and had again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import urllib3
from kubernetes.client import ApiClient

from ireko_api.handoff import Family, RunRequest
from ireko_operator.kube.cache import Cache
from ireko_operator.kube.client import KubeClient, NotFoundError
from ireko_operator.kube.events import EventWriter
from ireko_operator.kube.keys import CONFIG_MAPS, EVENTS, JOBS, RUNS, Key, Pass, Resource
from ireko_operator.launch.platform import Platform
from ireko_operator.launch.rayjob import REQUEST_FILE, attempt_name
from ireko_operator.reconcile.cluster import ClusterReconciler
from ireko_operator.reconcile.endings import Endings
from ireko_operator.reconcile.writing import StatusWriter
from ireko_operator.registrar import Background, Registrar
from ireko_operator.telemetry import NoTelemetry
from ireko_operator.tracking_poll import TrackingPoll
from play import trainer

CLUSTERS = Resource(group="ray.io", version="v1", plural="rayclusters")
PODS = Resource(group="", version="v1", plural="pods")
QUOTAS = Resource(group="", version="v1", plural="resourcequotas")
WORKLOADS = Resource(group="kueue.x-k8s.io", version="v1beta2", plural="workloads")
KUBERAY_FINALIZER = "ray.io/rayjob-finalizer"


def manifest(name: str = "demo", *, tracking_uri: str | None = None, **spec: Any) -> dict[str, Any]:
    """A CompressionRun that everything is right with."""
    compute = {"storage": {"persistentVolumeClaim": {"claimName": "storage"}}, **spec.pop("compute", {})}
    return {
        "apiVersion": "ireko.dev/v1alpha1",
        "kind": "CompressionRun",
        "metadata": {"name": name},
        "spec": {
            "teacher": {"model": "file:///models/teacher", "task": "text-classification"},
            "data": {"train": {"uri": "train.jsonl", "textColumns": ["sentence"], "labelColumn": "label"}},
            "pipeline": {"mlfs": {}, "quantization": {"bits": [4, 8]}},
            "deviceTargets": [
                {"name": "gateway", "constraints": {"maxSizeMiB": 20}},
                {"name": "sensor", "constraints": {"maxSizeMiB": 5}},
            ],
            "compute": compute,
            **({"registry": {"trackingUri": tracking_uri}} if tracking_uri else {}),
            **spec,
        },
    }


class Requests:
    """What is asked of the API server, reads included; some of it may be made to fail."""

    def __init__(self, api: ApiClient) -> None:
        self.made: list[tuple[str, str]] = []
        self.failures: list[Literal["unsent", "unanswered"]] = []
        """What becomes of the next requests, the first one first: not sent, or done without an answer."""
        self._call = api.call_api
        api.call_api = self._counted  # type: ignore[method-assign]

    def _counted(self, method: str, url: str, *arguments: Any, **named: Any) -> Any:
        self.made.append((method, url))
        failure = self.failures.pop(0) if self.failures else None
        if failure == "unsent":
            raise urllib3.exceptions.ProtocolError("the connection was cut before the request")
        answer = self._call(method, url, *arguments, **named)
        if failure == "unanswered":
            raise urllib3.exceptions.ProtocolError("the connection was cut before the answer")
        return answer

    @contextmanager
    def during(self) -> Iterator[list[tuple[str, str]]]:
        """The requests that are made within the block."""
        start, inside = len(self.made), list[tuple[str, str]]()
        yield inside
        inside.extend(self.made[start:])


class Recorder(NoTelemetry):
    """Remembers what was counted."""

    def __init__(self) -> None:
        self.writes: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()

    def api_write(self, resource: str, verb: str) -> None:
        self.writes[f"{verb} {resource}"] += 1

    def attempt(self, outcome: str) -> None:
        self.outcomes[f"attempt {outcome}"] += 1

    def run_finished(self, outcome: str, _seconds: float) -> None:
        self.outcomes[f"run {outcome}"] += 1

    def registration(self, result: str, _seconds: float) -> None:
        self.outcomes[f"registration {result}"] += 1


class Clock:
    """The time, and however much was added to it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead.total_seconds()


@dataclass(kw_only=True)
class Fence:
    open: bool = True

    def __call__(self) -> bool:
        return self.open


class World:
    """One namespace with runs in it; `restart` makes a new operator that knows nothing."""

    watched: tuple[Resource, ...] = (JOBS, CLUSTERS, PODS, RUNS)
    """The kinds that the operator hears of."""

    def __init__(
        self, *, api: ApiClient, hands: ApiClient, namespace: str, tracking_uri: str, directory: Path
    ) -> None:
        self.namespace = namespace
        self.tracking_uri = tracking_uri
        self.directory = directory
        self.requests = Requests(api)
        self.telemetry = Recorder()
        self.clock = Clock()
        self.hands = KubeClient(api=hands, seconds=30)
        self._api = api
        self.restart()

    def restart(self) -> None:
        """Another process of the operator; the one before writes no more."""
        if hasattr(self, "fence"):
            self.fence.open = False
            self.operator.close()
        self.fence = Fence()
        self.cache = Cache()
        self.woken: set[Key] = set()
        client = KubeClient(api=self._api, fence=self.fence, telemetry=self.telemetry, seconds=30)
        self.poll = TrackingPoll(wake=self.woken.add, clock=self.clock)
        self._background = Background(wake=self.woken.add, threads=2)
        self.operator = ClusterReconciler(
            client=client,
            cache=self.cache,
            poll=self.poll,
            platform=Platform(trainer_image="ireko.test/trainer:dev", tracking_uri=self.tracking_uri),
            endings=Endings(
                background=self._background,
                registrar=Registrar(background=self._background, fence=self.fence, telemetry=self.telemetry),
                monotonic=self.clock.monotonic,
            ),
            status=StatusWriter(
                client=client,
                cache=self.cache,
                events=EventWriter(client=client, instance="test"),
                telemetry=self.telemetry,
                interval=15.0,
                monotonic=self.clock.monotonic,
            ),
            telemetry=self.telemetry,
            close=self._background.close,
            clock=self.clock,
            monotonic=self.clock.monotonic,
        )

    def close(self) -> None:
        """End the operator, and let every run and RayJob of the namespace go."""
        self.operator.close()
        self.take_finalizers_away(RUNS, JOBS)

    def take_finalizers_away(self, *resources: Resource) -> None:
        """Let objects go that somebody holds, as an impatient person does."""
        for resource in resources:
            for body in self.hands.list(resource, namespace=self.namespace):
                if body["metadata"].get("finalizers"):
                    self.hands.merge(
                        resource,
                        namespace=self.namespace,
                        name=body["metadata"]["name"],
                        body={"metadata": {"finalizers": None}},
                        manager="person",
                    )

    @contextmanager
    def quota(self, name: str, *, hard: Mapping[str, str]) -> Iterator[None]:
        """A ResourceQuota of the namespace that is in force inside and gone afterwards."""
        body = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"hard": dict(hard)},
        }
        made = self.hands.create(QUOTAS, namespace=self.namespace, body=body, manager="person")
        self.wait(
            lambda: self.hands.get(QUOTAS, namespace=self.namespace, name=name).get("status", {}).get("hard")
        )
        yield
        self.hands.delete(QUOTAS, namespace=self.namespace, name=name, uid=made["metadata"]["uid"])
        self.wait(lambda: not self.hands.list(QUOTAS, namespace=self.namespace))

    # --- the operator ---

    def see(self) -> set[Key]:
        """Let the operator hear of everything as it is now; the runs that it is news for."""
        news: set[Key] = set()
        there: dict[tuple[str, Key], Mapping[str, Any]] = {}
        for resource in self.watched:
            for body in self.hands.list(resource, namespace=self.namespace):
                key = (self.namespace, body["metadata"]["name"])
                there[resource.plural, key] = body
        for (kind, key), known in list(self.cache._objects.items()):
            now = there.get((kind, key))
            if now is None or now["metadata"]["uid"] != known.meta.uid:
                meta = {"namespace": key[0], "name": key[1], "uid": known.meta.uid}
                news |= self.cache.observe(kind, "DELETED", {"metadata": meta})
        for (kind, _), body in there.items():
            news |= self.cache.observe(kind, "MODIFIED", body)
        return news

    def look(self, name: str = "demo") -> Pass:
        """One pass over what the operator knows."""
        return self.operator.reconcile((self.namespace, name))

    def step(self, name: str = "demo") -> Pass:
        """Hear of everything and look once."""
        self.see()
        return self.look(name)

    def settle(self, name: str = "demo", *, seconds: float = 60.0) -> None:
        """Look until there is nothing to do now, answers of MLflow included."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.woken.clear()
            done = self.step(name)
            if not done.changed and not self._waits_for_mlflow(name):
                return
            while self._waits_for_mlflow(name) and not self.woken and time.monotonic() < deadline:
                time.sleep(0.01)
        raise AssertionError(f"{name} did not settle: {self.status(name)}")

    def _waits_for_mlflow(self, name: str) -> bool:
        memory = self.operator._memories.get((self.namespace, name))
        ending = memory.ending if memory is not None else None
        return ending is not None and (ending.reading is not None or ending.registering is not None)

    def pass_time(self, seconds: float) -> None:
        """Let the operator's clock go ahead."""
        self.clock.ahead += timedelta(seconds=seconds)

    def wait(self, until: Callable[[], object], *, seconds: float = 20.0) -> None:
        """Until the cluster's own controllers have done something."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "the cluster did not come round"
            time.sleep(0.1)

    # --- people ---

    def apply(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """`kubectl apply --server-side`."""
        return self.hands.apply(
            RUNS, namespace=self.namespace, name=wanted["metadata"]["name"], body=wanted, manager="person"
        )

    def start(self, name: str = "demo", **spec: Any) -> None:
        """Apply a run and let the operator start it."""
        self.apply(manifest(name, **spec))
        self.settle(name)

    def edit(self, name: str = "demo", **spec: Any) -> None:
        """Change what may be changed of a run."""
        self.hands.merge(RUNS, namespace=self.namespace, name=name, body={"spec": spec}, manager="person")

    def delete(self, name: str = "demo") -> None:
        """`kubectl delete --wait=false`."""
        self.hands.delete(RUNS, namespace=self.namespace, name=name, uid=self.run(name)["metadata"]["uid"])

    # --- what there is ---

    def run(self, name: str = "demo") -> Mapping[str, Any]:
        return self.hands.get(RUNS, namespace=self.namespace, name=name)

    def exists(self, name: str = "demo") -> bool:
        try:
            self.run(name)
        except NotFoundError:
            return False
        return True

    def status(self, name: str = "demo") -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.run(name).get("status") or {}
        return status

    def condition(self, kind: str, name: str = "demo") -> Mapping[str, Any]:
        found = [item for item in self.status(name).get("conditions", ()) if item["type"] == kind]
        assert found, f"no condition {kind} in {self.status(name)}"
        return dict(found[0])

    def reason(self, kind: str, name: str = "demo") -> tuple[str, str]:
        """Status and reason of a condition."""
        condition = self.condition(kind, name)
        return condition["status"], condition["reason"]

    def jobs(self) -> list[Mapping[str, Any]]:
        return list(self.hands.list(JOBS, namespace=self.namespace))

    def events(self) -> list[tuple[str, str]]:
        """Type and reason of every event, in the order of writing."""
        items = self.hands.list(EVENTS, namespace=self.namespace)
        told = sorted(items, key=lambda item: int(item["metadata"]["resourceVersion"]))
        return [
            (item["type"], item["reason"])
            for item in told
            if item["reportingController"] == "ireko.dev/operator"
        ]

    # --- KubeRay ---

    def job_name(self, number: int = 1, name: str = "demo") -> str:
        return attempt_name(run=name, uid=self.run(name)["metadata"]["uid"], number=number)

    def job(self, number: int = 1, name: str = "demo") -> Mapping[str, Any]:
        return self.hands.get(JOBS, namespace=self.namespace, name=self.job_name(number, name))

    def play(self, state: str, job: str = "", *, number: int = 1, name: str = "demo", **status: Any) -> None:
        """Have KubeRay say of an attempt: deployment status, job status, reason, message, …"""
        self.play_job(self.job_name(number, name), state, job, **status)

    def play_job(self, name: str, state: str, job: str = "", **status: Any) -> None:
        """The same of a RayJob by its name."""
        body = {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "status": {"jobDeploymentStatus": state, "jobStatus": job, **status},
        }
        self.hands.apply(
            JOBS, namespace=self.namespace, name=name, body=body, manager="kuberay", subresource="status"
        )

    def hold(self, job: str) -> None:
        """Put KubeRay's finalizer on a RayJob."""
        self.hands.merge(
            JOBS,
            namespace=self.namespace,
            name=job,
            body={"metadata": {"finalizers": [KUBERAY_FINALIZER]}},
            manager="kuberay",
        )

    def let_go(self, job: str) -> None:
        """Have KubeRay be done with a RayJob that is deleted."""
        self.hands.merge(
            JOBS,
            namespace=self.namespace,
            name=job,
            body={"metadata": {"finalizers": None}},
            manager="kuberay",
        )

    # --- the trainer ---

    def request(self, number: int = 1, name: str = "demo") -> RunRequest:
        """What the trainer of an attempt is started with, as it is mounted into its pod."""
        there = self.hands.get(CONFIG_MAPS, namespace=self.namespace, name=self.job_name(number, name))
        return RunRequest.model_validate_json(there["data"][REQUEST_FILE])

    def progress(self, percent: int, *, number: int = 1, name: str = "demo") -> None:
        """Have the trainer say how far it is, and the operator ask."""
        trainer.progress(self.request(number, name), percent=percent, artifacts=self.directory / "artifacts")
        self.poll.poll()

    def finish(self, *, number: int = 1, name: str = "demo") -> Family:
        """Have the trainer hand its family over and KubeRay see it end well."""
        family = trainer.finish(
            self.request(number, name),
            artifacts=self.directory / "artifacts",
            scratch=self.directory,
        )
        self.play("Complete", "SUCCEEDED", number=number, name=name)
        return family
