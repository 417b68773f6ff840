"""What is kept of a watched object: the few fields that decide something, not the body.

A thousand runs with their jobs, clusters and pods have to fit beside each other into a small pod, so spec and
status of a run are kept as the JSON that they arrived as, and of the children only what a verdict reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ireko_api import spec
from ireko_operator.kube.keys import Key
from ireko_operator.launch.rayjob import LABEL_ATTEMPT, LABEL_RUN, LABEL_RUN_UID

Body = Mapping[str, Any]

MESSAGE_LIMIT = 4096
"""Of what Kubernetes says about a pod or a cluster."""
JOB_MESSAGE_LIMIT = 24_000
"""A RayJob's message ends with up to 20,000 characters of log; the trainer's last word stands at its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """Who an object is."""

    namespace: str
    name: str
    uid: str
    version: int
    """`resourceVersion`, which grows with every write to any object."""
    created: datetime | None
    deleting: datetime | None
    """When its deletion was asked for; it goes when its finalizers are gone."""
    finalizers: tuple[str, ...]
    run: Key | None
    """The run that it says it belongs to."""
    run_uid: str
    owner: str
    """uid of the controller that owns it."""

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return (self.namespace, self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunObject:
    """A CompressionRun."""

    meta: Meta
    generation: int
    labels: tuple[tuple[str, str], ...]
    spec: bytes
    """JSON."""
    status: bytes
    """JSON."""

    def manifest(self) -> dict[str, Any]:
        """The object as `ireko_api.validation.parse` takes it, without its status."""
        return {
            "apiVersion": spec.API_VERSION,
            "kind": spec.KIND,
            "metadata": {
                "name": self.meta.name,
                "namespace": self.meta.namespace,
                "uid": self.meta.uid,
                "generation": self.generation,
                "labels": dict(self.labels),
            },
            "spec": json.loads(self.spec),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class JobObject:
    """A RayJob."""

    meta: Meta
    attempt: int
    """0 where the label is missing."""
    queue: str
    """Kueue's queue label; with it, `suspend` belongs to Kueue."""
    suspend: bool
    job_status: str
    deployment_status: str
    reason: str
    message: str
    cluster: str
    """Name of the RayCluster that it runs on now."""
    training_since: datetime | None
    """When Ray started the trainer; again when KubeRay submits it again."""
    ended: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionObject:
    """One condition of a RayCluster, a Workload or a pod."""

    type: str
    status: str
    reason: str
    message: str
    since: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterObject:
    """A RayCluster."""

    meta: Meta
    state: str
    reason: str
    conditions: tuple[ConditionObject, ...]
    ready_workers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerObject:
    """One container of a pod, init containers included."""

    name: str
    image: str
    running: bool
    ready: bool
    waiting_reason: str
    waiting_message: str
    ended_reason: str
    """Why it ended now, or the time before."""
    ended_message: str
    exit_code: int | None
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PodObject:
    """A pod of a RayCluster, or of the Job that submits to it."""

    meta: Meta
    attempt: int
    cluster: str
    """Name of its RayCluster; empty for a submitter."""
    node_type: str
    """`head`, `worker` or empty for a submitter."""
    node: str
    phase: str
    reason: str
    """E.g. Evicted."""
    message: str
    conditions: tuple[ConditionObject, ...]
    containers: tuple[ContainerObject, ...]

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return any(item.type == "Ready" and item.status == "True" for item in self.conditions)

    @property
    def ended(self) -> bool:
        """Whether none of its containers will run again."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def out_of_memory(self) -> bool:
        """Whether one of its containers was killed at its memory limit."""
        return any(container.ended_reason == "OOMKilled" for container in self.containers)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadObject:
    """What Kueue queues for a RayJob."""

    meta: Meta
    conditions: tuple[ConditionObject, ...]


def run_object(body: Body) -> RunObject:
    """A CompressionRun as it is kept."""
    metadata = body["metadata"]
    return RunObject(
        meta=_meta(body),
        generation=int(metadata.get("generation") or 0),
        labels=tuple(sorted((metadata.get("labels") or {}).items())),
        spec=_json(body.get("spec")),
        status=_json(body.get("status")),
    )


def job_object(body: Body) -> JobObject:
    """A RayJob as it is kept."""
    wanted, status, labels = body.get("spec") or {}, body.get("status") or {}, _labels(body)
    return JobObject(
        meta=_meta(body),
        attempt=_number(labels.get(LABEL_ATTEMPT)),
        queue=labels.get("kueue.x-k8s.io/queue-name", ""),
        suspend=bool(wanted.get("suspend")),
        job_status=status.get("jobStatus") or "",
        deployment_status=status.get("jobDeploymentStatus") or "",
        reason=status.get("reason") or "",
        message=(status.get("message") or "")[-JOB_MESSAGE_LIMIT:],
        cluster=status.get("rayClusterName") or "",
        training_since=_time((status.get("rayJobInfo") or {}).get("startTime")),
        ended=_time(status.get("endTime")),
    )


def cluster_object(body: Body) -> ClusterObject:
    """A RayCluster as it is kept."""
    status = body.get("status") or {}
    return ClusterObject(
        meta=_meta(body),
        state=status.get("state") or "",
        reason=(status.get("reason") or "")[:MESSAGE_LIMIT],
        conditions=_conditions(status.get("conditions")),
        ready_workers=int(status.get("readyWorkerReplicas") or 0),
    )


def pod_object(body: Body) -> PodObject:
    """A pod as it is kept."""
    status, labels = body.get("status") or {}, _labels(body)
    containers = [
        _container(container)
        for field in ("initContainerStatuses", "containerStatuses")
        for container in status.get(field) or ()
    ]
    return PodObject(
        meta=_meta(body),
        attempt=_number(labels.get(LABEL_ATTEMPT)),
        cluster=labels.get("ray.io/cluster", ""),
        node_type=labels.get("ray.io/node-type", ""),
        node=(body.get("spec") or {}).get("nodeName") or "",
        phase=status.get("phase") or "",
        reason=status.get("reason") or "",
        message=(status.get("message") or "")[:MESSAGE_LIMIT],
        conditions=tuple(
            condition
            for condition in _conditions(status.get("conditions"))
            if condition.type in ("PodScheduled", "PodReadyToStartContainers", "Ready")
        ),
        containers=tuple(containers),
    )


def workload_object(body: Body) -> WorkloadObject:
    """A Workload as it is kept."""
    return WorkloadObject(
        meta=_meta(body), conditions=_conditions((body.get("status") or {}).get("conditions"))
    )


def _container(status: Body) -> ContainerObject:
    state, last = status.get("state") or {}, status.get("lastState") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or last.get("terminated") or {}
    return ContainerObject(
        name=status.get("name") or "",
        image=status.get("image") or "",
        running="running" in state,
        ready=bool(status.get("ready")),
        waiting_reason=waiting.get("reason") or "",
        waiting_message=(waiting.get("message") or "")[:MESSAGE_LIMIT],
        ended_reason=ended.get("reason") or "",
        ended_message=(ended.get("message") or "")[:MESSAGE_LIMIT],
        exit_code=ended.get("exitCode"),
        ended_at=_time(ended.get("finishedAt")),
    )


def _conditions(conditions: Iterable[Body] | None) -> tuple[ConditionObject, ...]:
    return tuple(
        ConditionObject(
            type=condition.get("type") or "",
            status=condition.get("status") or "Unknown",
            reason=condition.get("reason") or "",
            message=(condition.get("message") or "")[:MESSAGE_LIMIT],
            since=_time(condition.get("lastTransitionTime")),
        )
        for condition in conditions or ()
    )


def _meta(body: Body) -> Meta:
    metadata = body["metadata"]
    namespace, labels = metadata.get("namespace") or "", _labels(body)
    owners = [owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")]
    return Meta(
        namespace=namespace,
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        version=_number(metadata.get("resourceVersion")),
        created=_time(metadata.get("creationTimestamp")),
        deleting=_time(metadata.get("deletionTimestamp")),
        finalizers=tuple(metadata.get("finalizers") or ()),
        run=(namespace, labels[LABEL_RUN]) if LABEL_RUN in labels else None,
        run_uid=labels.get(LABEL_RUN_UID, ""),
        owner=owners[0].get("uid", "") if owners else "",
    )


def _labels(body: Body) -> Mapping[str, str]:
    return body["metadata"].get("labels") or {}


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _json(value: Any) -> bytes:
    return json.dumps(value or {}, separators=(",", ":")).encode()
