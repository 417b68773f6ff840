"""`spec.compute` and `spec.registry`: what a run may use, and where its models are registered."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from ireko_api.base import INT32_MAX, Integer, Rule, SpecModel, Text, name_of, text, trimmed
from ireko_api.placement import Head, LabelValue, ObjectName, Storage, Toleration
from ireko_api.pod_template import PodTemplate
from ireko_api.quantity import Quantity, parse_quantity, to_bytes
from ireko_api.status import MAX_ATTEMPTS

_ONE_DAY = 86400

_MODEL_NAME = text(
    pattern=r"^[^\s/:@]([^/:@]*[^\s/:@])?$",
    form="a name without slashes, colons, at signs and spaces around it",
    max_length=256,
)


class Resources(SpecModel):
    """What one worker may use."""

    cpu: Quantity = "1"
    """Processor cores, as a Kubernetes quantity, e.g. `2` or `500m`."""
    memory: Quantity = "2Gi"
    """Memory, as a Kubernetes quantity, e.g. `2Gi`."""
    gpu: Annotated[Integer, Field(ge=0, le=16)] = 0
    """Whole GPUs."""

    @property
    def cpus(self) -> float:
        """Cores as a number."""
        return float(parse_quantity(self.cpu))

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return to_bytes(self.memory)


def _memory_may_grow(compute: Compute) -> bool:
    most, start = compute.max_memory, compute.resources_per_worker.memory
    return most is None or parse_quantity(most) >= parse_quantity(start)


class Compute(SpecModel):
    """What the training may use, and what becomes of a run whose training fails."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset({"ttlSecondsAfterFinished"})
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="maxMemory is what a worker's memory may grow to: raise it to resourcesPerWorker.memory or"
            " more, or drop it",
            cel="!has(self.maxMemory) || quantity(string(self.maxMemory)).compareTo("
            "quantity(string(self.resourcesPerWorker.memory))) >= 0",
            holds=_memory_may_grow,
            field="maxMemory",
        ),
    )

    workers: Annotated[Integer, Field(ge=0, le=1024)] = 1
    """Data-parallel training workers, each a process of its own. 0 trains in the trainer's own process, which
    starts fastest and suits a laptop."""
    resources_per_worker: Resources = Resources()
    """What each worker may use."""
    threads_per_worker: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    """Threads that one worker computes with. Without it as many as `resourcesPerWorker.cpu`, rounded up."""
    max_worker_failures: Annotated[Integer, Field(ge=0, le=100)] = 1
    """How often lost workers are replaced within one attempt before the attempt fails. Training goes on from
    the last checkpoint."""
    image: Annotated[Text, text(pattern=r"^\S+$", form="one word", max_length=512)] | None = None
    """Image that the trainer runs in. Without it the one that the operator is configured with."""
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=16)] = ()
    """Names of Secrets of the run's namespace that the image is pulled with."""
    service_account_name: ObjectName | None = None
    """Service account of the pods, e.g. one that a cloud gives access to a bucket. Its token is not mounted.
    Without it the namespace's default one."""
    head: Head = Head()
    """The pod that leads."""
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=32)] = Field(default={})
    """Labels of the nodes that every pod of the run needs."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints of nodes that every pod of the run puts up with."""
    pod_template: PodTemplate | None = None
    """What is laid over the pods of head and workers."""
    storage: Storage | None = None
    """Where checkpoints and outputs are kept between two attempts. Required on a cluster; a laptop keeps them in
    its state directory."""
    queue_name: Annotated[Text, name_of(max_length=63)] | None = None
    """Kueue's LocalQueue that the run waits in for its quota. Without it the run does not queue."""
    priority_class_name: ObjectName | None = None
    """Priority class of the pods, which Kueue goes by as well."""
    max_attempts: Annotated[Integer, Field(ge=1, le=MAX_ATTEMPTS)] = 3
    """How many attempts may fail before the run has failed. Only troubles that may pass are tried again, and
    each attempt goes on where the one before stood."""
    retry_backoff_seconds: Annotated[Integer, Field(ge=1, le=600)] = 30
    """How long to wait after the first failed attempt. It doubles with each, up to ten minutes."""
    max_memory: Quantity | None = None
    """How far the memory of a worker may grow: after an attempt that ran out of memory the next one gets half as
    much again, up to this. Without it every attempt gets the same."""
    active_deadline_seconds: Annotated[Integer, Field(ge=1, le=INT32_MAX)] | None = None
    """How long the run may take in all, not counting the time that it is suspended or queued. Without it there
    is no limit."""
    pending_deadline_seconds: Annotated[Integer, Field(ge=1, le=30 * _ONE_DAY)] = 1800
    """How long an attempt may take until its pods run, not counting the time that it is suspended or queued."""
    ttl_seconds_after_finished: Annotated[Integer, Field(ge=0, le=INT32_MAX)] | None = None
    """How long after its end the run is deleted, with its RayJobs. What it registered stays. May be changed.
    Without it the run stays."""


class Registry(SpecModel):
    """Where runs are tracked and models registered: an MLflow server or a local MLflow database."""

    tracking_uri: Annotated[Text, trimmed(max_length=1024)] | None = None
    """URI of the MLflow tracking server, e.g. `http://mlflow:5000`. Without it the one that the operator is
    configured with; on a laptop a database in the state directory. Never write a password here."""
    experiment: Annotated[Text, trimmed(max_length=256)] = "ireko"
    """Name of the MLflow experiment, made when absent."""
    model_name: Annotated[Text, _MODEL_NAME] | None = None
    """Name of the registered model whose versions the members become; no slash, colon or at sign. Without it the name
    of the run."""
    credentials_secret: ObjectName | None = None
    """Secret of the run's namespace whose keys become environment variables of the trainer, e.g.
    `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `AWS_ACCESS_KEY_ID` for artifacts in S3."""
