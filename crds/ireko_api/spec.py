"""`CompressionRun`: one teacher in, a family of compressed models out, as a manifest says it.

The manifest's objects live in one module per part; this one puts them together and is where everyone imports
them from. The CRD, the reference page and every error text are generated from these models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ireko_api.base import INT32_MAX, Boolean, Integer, Rule, SpecModel, Text, attribute, name_of
from ireko_api.compute import Compute, Registry, Resources
from ireko_api.data import Data, DataSource
from ireko_api.pipeline import (
    Delta,
    DeltaRecovery,
    Distillation,
    GradientScaling,
    Mlfs,
    Pipeline,
    Quantization,
    Recovery,
    Sampling,
    SearchSpace,
    Stages,
    SupernetStage,
    TeacherStage,
)
from ireko_api.placement import (
    Head,
    HeadResources,
    ObjectStore,
    PersistentVolumeClaim,
    Storage,
    Toleration,
)
from ireko_api.pod_template import PodSpec, PodTemplate
from ireko_api.status import CompressionRunStatus
from ireko_api.targets import (
    CLASSIFICATION_METRICS,
    EMBEDDING_METRICS,
    LANGUAGE_METRICS,
    REGRESSION_METRICS,
    Constraints,
    DeviceTarget,
    Evaluation,
    MultipleChoice,
)
from ireko_api.teacher import Teacher

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "CompressionRun",
    "CompressionRunSpec",
    "Compute",
    "Constraints",
    "Data",
    "DataSource",
    "Delta",
    "DeltaRecovery",
    "DeviceTarget",
    "Distillation",
    "Evaluation",
    "GradientScaling",
    "Head",
    "HeadResources",
    "Mlfs",
    "MultipleChoice",
    "ObjectMeta",
    "ObjectStore",
    "PersistentVolumeClaim",
    "Pipeline",
    "PodSpec",
    "PodTemplate",
    "Quantization",
    "Recovery",
    "Registry",
    "Resources",
    "Sampling",
    "SearchSpace",
    "Stages",
    "Storage",
    "SupernetStage",
    "Teacher",
    "TeacherStage",
    "Toleration",
]

GROUP = "ireko.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "CompressionRun"
PLURAL = "compressionruns"

_label_column = attribute("data.train.label_column")
_stage_0 = attribute("pipeline.mlfs.stages.teacher.method")
_distils_from = attribute("pipeline.mlfs.distillation.teacher")


def _trains_stage_0_unlabelled(spec: CompressionRunSpec) -> bool:
    return _label_column(spec) is None and _stage_0(spec) in ("Full", "LowRank")


_CEL_TRAINS_STAGE_0_UNLABELLED = (
    "!has(self.data.train.labelColumn) && has(self.pipeline.mlfs)"
    " && self.pipeline.mlfs.stages.teacher.method != 'Skip'"
)


def _cel_running_text(source: str) -> str:
    rule = f"(!has(self.data.{source}.labelColumn) && self.data.{source}.textColumns.size() == 1)"
    return rule if source == "train" else f"(!has(self.data.{source}) || {rule})"


def _holds_running_text(data: Data) -> bool:
    sources = [source for source in (data.train, data.validation, data.calibration) if source is not None]
    return all(source.label_column is None and len(source.text_columns) == 1 for source in sources)


def _metric_suits(task: str, metrics: tuple[str, ...]) -> Rule:
    """The rule that a run for `task` is judged by one of `metrics`."""
    return Rule(
        message=f"{task} cannot be judged by this metric: choose one of {', '.join(metrics)}, or drop metric",
        cel=f"self.teacher.task != '{task}' || !has(self.evaluation.metric)"
        f" || self.evaluation.metric in {list(metrics)}",
        holds=lambda spec: spec.teacher.task != task or spec.evaluation.metric in (None, *metrics),
        field="evaluation.metric",
    )


class CompressionRunSpec(SpecModel):
    """What to compress, on which texts, by which methods, for which devices."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset({"suspend"})
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="feature-extraction without a labelColumn has nothing to fine-tune the teacher towards:"
            " set pipeline.mlfs.stages.teacher.method to Skip, or name data.train.labelColumn",
            cel=f"self.teacher.task != 'feature-extraction' || !({_CEL_TRAINS_STAGE_0_UNLABELLED})",
            holds=lambda spec: (
                spec.teacher.task != "feature-extraction" or not _trains_stage_0_unlabelled(spec)
            ),
            field="pipeline.mlfs.stages.teacher.method",
        ),
        Rule(
            message="text-classification fine-tunes the teacher on labels: name data.train.labelColumn,"
            " or set pipeline.mlfs.stages.teacher.method to Skip for a teacher that is fine-tuned already",
            cel=f"self.teacher.task != 'text-classification' || !({_CEL_TRAINS_STAGE_0_UNLABELLED})",
            holds=lambda spec: (
                spec.teacher.task != "text-classification" or not _trains_stage_0_unlabelled(spec)
            ),
            field="pipeline.mlfs.stages.teacher.method",
        ),
        Rule(
            message="InPlace distillation trains the largest subnet on labels while the others learn from it:"
            " name data.train.labelColumn, or set pipeline.mlfs.distillation.teacher to Frozen",
            cel="has(self.data.train.labelColumn) || self.teacher.task == 'text-generation'"
            " || !has(self.pipeline.mlfs) || self.pipeline.mlfs.distillation.teacher != 'InPlace'",
            holds=lambda spec: (
                _label_column(spec) is not None
                or spec.teacher.task == "text-generation"
                or _distils_from(spec) != "InPlace"
            ),
            field="pipeline.mlfs.distillation.teacher",
        ),
        Rule(
            message="names of deviceTargets must differ from each other, because they become the aliases of"
            " the members",
            cel="self.deviceTargets.all(a, self.deviceTargets.exists_one(b, a.name == b.name))",
            holds=lambda spec: (
                len({target.name for target in spec.device_targets}) == len(spec.device_targets)
            ),
            field="deviceTargets",
        ),
        _metric_suits("feature-extraction", EMBEDDING_METRICS),
        _metric_suits("text-classification", CLASSIFICATION_METRICS + REGRESSION_METRICS),
        _metric_suits("text-generation", LANGUAGE_METRICS),
        Rule(
            message="only a model that generates text answers questions: drop multipleChoice",
            cel="self.teacher.task == 'text-generation' || !has(self.evaluation.multipleChoice)",
            holds=lambda spec: (
                spec.teacher.task == "text-generation" or spec.evaluation.multiple_choice is None
            ),
            field="evaluation.multipleChoice",
        ),
        Rule(
            message="text-generation learns from running text: drop labelColumn, and leave one entry in textColumns,"
            " in train, validation and calibration",
            cel="self.teacher.task != 'text-generation' || ("
            + " && ".join(_cel_running_text(name) for name in ("train", "validation", "calibration"))
            + ")",
            holds=lambda spec: spec.teacher.task != "text-generation" or _holds_running_text(spec.data),
            field="data.train",
        ),
        Rule(
            message="text-generation foresees tokens, and these names of classes would mean nothing: drop labels,"
            " or set teacher.task to text-classification",
            cel="self.teacher.task != 'text-generation' || !has(self.data.labels)",
            holds=lambda spec: spec.teacher.task != "text-generation" or spec.data.labels is None,
            field="data.labels",
        ),
        Rule(
            message="text-generation foresees tokens, neither a class nor a number: drop problemType, or set"
            " teacher.task to text-classification",
            cel="self.teacher.task != 'text-generation' || !has(self.data.problemType)",
            holds=lambda spec: spec.teacher.task != "text-generation" or spec.data.problem_type is None,
            field="data.problemType",
        ),
    )

    seed: Annotated[Integer, Field(ge=0, le=INT32_MAX)] = 0
    """Seed of every random choice. The same manifest with the same seed on the same machine gives the same
    family."""
    teacher: Teacher
    """The model that the family is cut from."""
    data: Data
    """What the family is trained on and judged by."""
    pipeline: Pipeline
    """The methods of this run: at least one of `mlfs` and `quantization`."""
    device_targets: Annotated[tuple[DeviceTarget, ...], Field(min_length=1, max_length=16)]
    """The classes of devices that the family is cut for: one member each."""
    evaluation: Evaluation = Evaluation()
    """How members are judged."""
    compute: Compute = Compute()
    """What the training may use."""
    registry: Registry = Registry()
    """Where runs are tracked and models registered."""
    suspend: Boolean = False
    """Whether the run pauses. A paused run gives its pods back and goes on from its last checkpoint when this is
    `false` again. May be changed; has no effect on a laptop."""

    @property
    def training_workers(self) -> int:
        """Workers that the run trains on: none where nothing is trained."""
        return self.compute.workers if self.trains else 0

    @property
    def trains(self) -> bool:
        """Whether any stage of the run has steps to train."""
        delta = self.pipeline.delta
        return self.pipeline.mlfs is not None or (delta is not None and delta.recovery is not None)

    def canonical_json(self) -> str:
        """What decides the result, with its defaults filled in: sorted camelCase keys, no spaces.

        Where, with what and how patiently a run executes is left out: another image, more memory or a pause is
        the same run, which goes on where it stood. Of `compute` only the number of workers is in it, because it
        decides which texts meet in a step. Gradient checkpointing trades time for memory and changes no number.
        """
        content = self.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude={"suspend", "compute"}
        )
        content["registry"].pop("credentialsSecret", None)
        content["pipeline"].get("mlfs", {}).pop("gradientCheckpointing", None)
        delta = content["pipeline"].get("delta", {})
        if not delta.get("materialize"):
            # Runs that were made before there was this field are found again.
            delta.pop("materialize", None)
        content["compute"] = {"workers": self.compute.workers}
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def digest(self) -> str:
        """sha256 of `canonical_json`, in hexadecimal: what a run is found again by."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


_KEPT_BY_THE_API_SERVER = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
    }
)

Words = Annotated[dict[str, Annotated[str, Field(max_length=262144)]], Field(max_length=256)]


class ObjectMeta(SpecModel):
    """The part of Kubernetes' object metadata that a run needs."""

    name: Annotated[Text, name_of(max_length=40)]
    """Name of the run: lower-case letters, digits and hyphens, at most 40 characters, because the names of
    its jobs and pods are made from it."""
    namespace: Annotated[Text, name_of(max_length=63)] = "default"
    """Namespace of the run."""
    labels: Words = Field(default_factory=dict)
    """Labels, as for every Kubernetes object."""
    annotations: Words = Field(default_factory=dict)
    """Annotations, as for every Kubernetes object."""
    uid: Annotated[Text, Field(max_length=128)] | None = None
    """Set by the API server."""
    generation: Annotated[int, Field(ge=0)] | None = None
    """Set by the API server: counts changes of the spec."""

    @model_validator(mode="before")
    @classmethod
    def _leave_bookkeeping_out(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: item for key, item in value.items() if key not in _KEPT_BY_THE_API_SERVER}


class CompressionRun(SpecModel):
    """One compression: a teacher model in, a family of smaller models out, one for each class of devices."""

    api_version: Literal["ireko.dev/v1alpha1"]
    """Version of this schema."""
    kind: Literal["CompressionRun"]
    """Kind of this object."""
    metadata: ObjectMeta
    """Name and namespace of the run."""
    spec: CompressionRunSpec
    """What to compress, on which texts, by which methods, for which devices. Nothing in it may
    change once the run exists: make a new run instead."""
    status: CompressionRunStatus | None = None
    """What became of it. Written by the operator."""
