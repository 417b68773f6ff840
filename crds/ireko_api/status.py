"""`status`: what became of a run. Conditions are the truth; `phase` is their summary for people.

Only the operator writes it, and it is read by whatever version of the operator comes next, so unknown fields
are ignored here instead of refused.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from ireko_api.base import INT32_MAX, NUMBER, Integer, SpecModel, Text

Phase = Literal["Pending", "Running", "Suspended", "Succeeded", "Failed", "Interrupted"]
Outcome = Literal["Running", "Succeeded", "Failed", "Interrupted"]

MAX_ATTEMPTS = 32
MAX_BYTES = 2**53


class StatusModel(SpecModel):
    """An object below `status`."""

    model_config = ConfigDict(extra="ignore")


def _to_the_second(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


Moment = Annotated[datetime, AfterValidator(_to_the_second)]
"""Kubernetes writes times to the second; keeping more would make every comparison of a status fail."""
Count = Annotated[int, Field(ge=0, le=MAX_BYTES)]
Metrics = Annotated[dict[str, Annotated[float, Field(ge=-1e9, le=1e9), NUMBER]], Field(max_length=32)]
Sentence = Annotated[Text, Field(max_length=4096)]
ShortText = Annotated[Text, Field(max_length=256)]
Uri = Annotated[Text, Field(max_length=2048)]


class Condition(StatusModel):
    """One aspect of the run's state, in the shape of `metav1.Condition`."""

    type: Annotated[Text, Field(min_length=1, max_length=316)]
    """Which aspect: one of the types in `ireko_api.reasons`."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Annotated[int, Field(ge=0, le=MAX_BYTES)] | None = None
    """The generation of the run that this was said of."""
    last_transition_time: Moment
    """When `status` last changed."""
    reason: Annotated[
        Text, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    """Why, in one CamelCase word for programs."""
    message: Annotated[Text, Field(max_length=32768)] = ""
    """Why, in a sentence for people: what happened and what to do."""


class Attempt(StatusModel):
    """One start of the trainer."""

    number: Annotated[Integer, Field(ge=1, le=INT32_MAX)]
    """Counts from 1."""
    started_at: Moment
    """When it was started."""
    finished_at: Moment | None = None
    """When it ended."""
    outcome: Outcome = "Running"
    """How it ended."""
    reason: ShortText = ""
    """Why it ended so, in one CamelCase word."""
    ray_job: Annotated[Text, Field(max_length=63)] = ""
    """Name of its RayJob, on a cluster."""
    memory: Annotated[Text, Field(max_length=32)] = ""
    """Memory of each worker, on a cluster."""
    message: Sentence = ""
    """Why it ended so."""


class ProgressStatus(StatusModel):
    """How far the run is."""

    stage: ShortText
    """The stage that is being worked on."""
    step: Count = 0
    """Steps done in this stage."""
    total_steps: Count = 0
    """Steps of this stage."""
    percent: Annotated[Integer, Field(ge=0, le=100)] = 0
    """Of the whole run, by the stages' estimated costs."""
    eta_seconds: Annotated[Integer, Field(ge=0, le=INT32_MAX)] | None = None
    """Estimated seconds to the end of the run."""


class MlflowStatus(StatusModel):
    """Where the run is tracked."""

    tracking_uri: Uri
    """URI of the MLflow server."""
    run_id: ShortText
    """The parent run: parameters, metrics, report and models hang below it."""


class TeacherStatus(StatusModel):
    """The largest member, which the others are measured against."""

    parameters: Count
    """Number of weights."""
    size_bytes: Count
    """Bytes of its weight file."""
    metrics: Metrics = Field(default_factory=dict)
    """What it scores on the validation texts."""


class MemberStatus(StatusModel):
    """One registered model of the family."""

    target: Annotated[Text, Field(min_length=1, max_length=63)]
    """The device target that it was chosen for."""
    model_uri: Uri
    """Where it is registered, e.g. `models:/quickstart@gateway`."""
    version: ShortText
    """Its version of the registered model."""
    parameters: Count
    """Number of weights."""
    size_bytes: Count
    """Bytes of the weight file that ships."""
    average_bits: Annotated[float, Field(ge=0, le=64), NUMBER]
    """Stored bits per weight, scales included."""
    metrics: Metrics = Field(default_factory=dict)
    """What it scores on the validation texts."""


class CompressionRunStatus(StatusModel):
    """What became of the run."""

    phase: Phase = "Pending"
    """Summary of the conditions, for people."""
    reason: ShortText = ""
    """Why the run stands where it stands, in one CamelCase word: that of the condition to look at first."""
    observed_generation: Annotated[int, Field(ge=0, le=MAX_BYTES)] | None = None
    """The generation of the run that this status is about."""
    started_at: Moment | None = None
    """When its first attempt was started."""
    finished_at: Moment | None = None
    """When it came to its end."""
    active_seconds: Annotated[Integer, Field(ge=0, le=INT32_MAX)] = 0
    """How long attempts held a cluster until `activeSince`, which `activeDeadlineSeconds` is compared with."""
    active_since: Moment | None = None
    """Since when an attempt holds a cluster. Absent while none does."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """The run's state, one aspect each."""
    attempts: Annotated[
        tuple[Attempt, ...],
        Field(
            max_length=MAX_ATTEMPTS,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
        ),
    ] = ()
    """The starts of the trainer, oldest first. Each goes on where the one before stood."""
    progress: ProgressStatus | None = None
    """How far the run is."""
    mlflow: MlflowStatus | None = None
    """Where the run is tracked."""
    teacher: TeacherStatus | None = None
    """The largest member."""
    members: Annotated[
        tuple[MemberStatus, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["target"]},
        ),
    ] = ()
    """The family: one registered model per device target."""
    registered: Annotated[Text, Field(max_length=16)] = ""
    """How many members are registered, of how many device targets, e.g. `1/3`."""
    report: Uri | None = None
    """Where the report is."""
