"""What passes between the operator and the trainer, which never call each other.

The operator writes a `RunRequest` to a file and starts the trainer on it; the trainer answers only through
MLflow: a parent run found by its tags, `Progress` and `Failure` in tags of that run, and the finished
`Family` as the artifact `family.json`. On a laptop and on a cluster these are the same four records. Only a
failure is told twice more, since MLflow may be what failed: in the storage, and in the trainer's last line of
output, which a cluster shows in the status of the job.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ireko_api.spec import CompressionRunSpec

TAG_UID = "ireko.run.uid"
TAG_NAME = "ireko.run.name"
TAG_SPEC_DIGEST = "ireko.spec.digest"
TAG_STAGE = "ireko.stage"
TAG_PROGRESS = "ireko.progress"
TAG_FAILURE = "ireko.failure"
FAMILY_ARTIFACT = "family.json"
REPORT_ARTIFACT_DIR = "report"
FAILURE_FILE = "failure.json"
FAILURE_LINE = "IREKO_FAILURE "
"""What the trainer's last line of output begins with when it failed; the record follows as JSON."""

_LONGEST_MESSAGE = 1500
"""Of a failure in a line: Ray hands on the last 20,000 characters of the output, and one may become twelve."""

EXIT_SUCCEEDED = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 3
"""What the trainer process exits with; anything else is a death that it could not report."""


class Record(BaseModel):
    """A frozen record whose JSON keys are camelCase."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="constants",
    )

    def to_json(self) -> str:
        """The record as JSON with camelCase keys; `model_validate_json` reads it back."""
        return self.model_dump_json(by_alias=True)


class RunRequest(Record):
    """What the trainer process is started with."""

    name: str
    namespace: str = "default"
    uid: str
    spec_digest: str
    """sha256 of the canonical JSON of the spec: the parent run of MLflow is found by `uid` and this."""
    spec: CompressionRunSpec
    base_dir: str
    """Relative paths of the spec are relative to this directory (that of the manifest)."""
    storage: str
    """Where stages keep checkpoints and outputs, the same for every attempt of a run: a directory that all its machines
    see under this path, or the URI of a place in an object store (`s3://bucket/prefix`, any scheme of fsspec)."""
    tracking_uri: str
    artifact_location: str | None = None
    """Where MLflow keeps artifacts if the experiment has to be created; None: the server decides."""
    attempt: Annotated[int, Field(ge=1)] = 1


class Progress(Record):
    """How far the trainer is, in the tag `ireko.progress` of the parent run."""

    stage: str
    stage_index: int
    stage_count: int
    step: int
    total_steps: int
    percent: Annotated[int, Field(ge=0, le=100)]
    """Of the whole run, by the stages' estimated costs."""
    eta_seconds: int | None = None
    message: str = ""
    updated_at: datetime


class Failure(Record):
    """Why the trainer stopped, in the tag `ireko.failure` and in the file `failure.json` of the storage."""

    reason: Literal[
        "InvalidInput",
        "NothingFits",
        "Diverged",
        "TrackingUnreachable",
        "StorageFull",
        "StorageNotWritable",
        "WorkerLost",
        "Interrupted",
        "Internal",
    ]
    message: str
    """One or two sentences: what happened and what to do."""
    stage: str = ""
    resumable: bool = False
    """True when the same command goes on where this attempt stood, with nothing to mend in the manifest."""

    def to_line(self) -> str:
        """The failure as one line of ASCII, with a very long message cut; `failure_in` finds it again."""
        short = self.message
        if len(short) > _LONGEST_MESSAGE:
            short = short[: _LONGEST_MESSAGE - 1] + "…"
        record = self.model_copy(update={"message": short}).model_dump(mode="json", by_alias=True)
        return FAILURE_LINE + json.dumps(record)


def failure_in(output: str) -> Failure | None:
    """The failure that a trainer's output, or the end of it, tells of last; None where it tells of none."""
    for line in reversed(output.splitlines()):
        if line.startswith(FAILURE_LINE):
            try:
                return Failure.model_validate_json(line.removeprefix(FAILURE_LINE))
            except ValidationError:
                # Cut by whoever kept only a part of the output.
                return None
    return None


class ModelShape(Record):
    """The dimensions of one subnet, in the terms of its configuration."""

    hidden: int
    heads: int
    intermediate: int
    layers: tuple[int, ...]
    """Indices of the teacher's layers that the subnet keeps."""


class Member(Record):
    """One model of the family, chosen for one device target."""

    target: str
    runtime: str
    logged_model_uri: str
    """`models:/m-…`: what the registration makes a version of."""
    bundle_sha256: str
    size_bytes: int
    """Bytes of the weight file that ships."""
    parameters: int
    average_bits: float
    """Stored bits per weight over all weights, scales included."""
    shape: ModelShape
    metrics: dict[str, float]
    metric: str
    """The name in `metrics` that selection went by."""


class TeacherSummary(Record):
    """The largest member, which the others are measured against."""

    metrics: dict[str, float]
    size_bytes: int
    parameters: int
    sha256: str


class Family(Record):
    """Everything a finished run hands over, as the artifact `family.json` of the parent run."""

    name: str
    uid: str
    spec_digest: str
    run_id: str
    teacher: TeacherSummary
    members: tuple[Member, ...]
    report: str
    """Artifact path of the HTML report in the parent run."""
