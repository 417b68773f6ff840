"""Where the pods of a run may go and what they are made of: the part of `spec.compute` that Kubernetes reads.

On a laptop nothing here has an effect, and nothing here changes what a run computes: it is no part of the
digest.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ireko_api.base import INT32_MAX, Integer, Rule, SpecModel, Text, text
from ireko_api.quantity import Quantity, parse_quantity, to_bytes

OBJECT_NAME_LENGTH = 253

LABEL_KEY = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
"""What a key of labels and annotations looks like. A CRD cannot say so of the keys of a map, so the operator does."""
_LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_PATH_STEP = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"


def object_name() -> Any:
    """The constraints of the name of a Kubernetes object: a DNS-1123 subdomain."""
    return text(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        form="the name of an object: lower-case letters, digits, hyphens and dots",
        max_length=OBJECT_NAME_LENGTH,
    )


ObjectName = Annotated[Text, object_name()]
LabelKey = Annotated[
    Text, text(pattern=f"^{LABEL_KEY}$", form="a label key such as `kubernetes.io/arch`", max_length=317)
]
LabelValue = Annotated[Text, Field(max_length=63, pattern=f"^{_LABEL_VALUE}$")]


class HeadResources(SpecModel):
    """What the head pod may use."""

    cpu: Quantity = "1"
    """Processor cores, as a Kubernetes quantity."""
    memory: Quantity = "4Gi"
    """Memory, as a Kubernetes quantity. Ray's own processes and the trainer's take 2 to 3 GiB before any model."""

    @property
    def cpus(self) -> float:
        """Cores as a number."""
        return float(parse_quantity(self.cpu))

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return to_bytes(self.memory)


class Head(SpecModel):
    """The pod that leads the Ray cluster and runs the trainer's own process, which prepares, chooses and ships
    while the workers train."""

    resources: HeadResources = HeadResources()
    """What it may use. With `compute.workers: 0`, and in a run that trains nothing, it does all the work
    itself and gets `compute.resourcesPerWorker` where that is more."""


class Toleration(SpecModel):
    """A taint of nodes that the pods put up with, as in a pod's specification."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="a toleration whose operator is Exists matches every value: drop value, or make it Equal",
            cel="!has(self.value) || self.operator == 'Equal'",
            holds=lambda toleration: toleration.value is None or toleration.operator == "Equal",
            field="value",
        ),
        Rule(
            message="a toleration of every taint needs the operator Exists: set operator to Exists, or name the key",
            cel="has(self.key) || self.operator == 'Exists'",
            holds=lambda toleration: toleration.key is not None or toleration.operator == "Exists",
            field="operator",
        ),
    )

    key: LabelKey | None = None
    """Key of the taint. Without it every key, which needs the operator `Exists`."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How the taint's value is compared with `value`."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Without it every effect."""
    toleration_seconds: Annotated[Integer, Field(ge=0, le=INT32_MAX)] | None = None
    """How long a pod stays on a node that gets a `NoExecute` taint. Without it for ever."""


class PersistentVolumeClaim(SpecModel):
    """A claim of the run's namespace that every pod of the run mounts."""

    claim_name: ObjectName
    """Name of the claim. It has to be `ReadWriteMany` unless all pods land on one node."""
    sub_path: (
        Annotated[
            Text,
            text(
                pattern=rf"^{_PATH_STEP}(/{_PATH_STEP})*$",
                form="a relative path whose parts do not begin with a dot",
                max_length=512,
            ),
        ]
        | None
    ) = None
    """Directory of the volume below which everything is kept, and which relative paths of `teacher` and `data` start
    at. Without it the volume's top."""


class ObjectStore(SpecModel):
    """A bucket, or a part of one, that every pod of the run reads and writes."""

    uri: Annotated[
        Text,
        text(
            pattern=r"^(s3|s3a|gs|gcs|az|abfs|abfss|oci|hdfs)://[^\s?#]+$",
            form="the URI of a bucket such as `s3://bucket/prefix`",
            max_length=1024,
        ),
    ]
    """Where everything is kept, e.g. `s3://bucket/prefix`. Never write a password here."""
    credentials_secret: ObjectName | None = None
    """Secret of the run's namespace whose keys become environment variables of the trainer, e.g.
    `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`."""


class Storage(SpecModel):
    """Where checkpoints and outputs are kept between two attempts: a volume or an object store."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="name exactly one place: persistentVolumeClaim or objectStore",
            cel="has(self.persistentVolumeClaim) != has(self.objectStore)",
            holds=lambda storage: (storage.persistent_volume_claim is None) != (storage.object_store is None),
            field="persistentVolumeClaim",
        ),
    )

    persistent_volume_claim: PersistentVolumeClaim | None = None
    """A claim of the run's namespace."""
    object_store: ObjectStore | None = None
    """A bucket."""
