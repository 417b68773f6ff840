"""What a pass of the reconcile knows, and what it can decide: plain frozen values, no clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from ireko_api.handoff import Failure, Family, Progress
from ireko_api.spec import CompressionRun
from ireko_api.status import CompressionRunStatus
from ireko_operator.launch import Attempt, Memory, Trouble
from ireko_operator.launch.platform import Platform


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The parent run of the trainer as MLflow holds it now."""

    run_id: str
    artifact_uri: str
    progress: Progress | None = None
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Registration:
    """One member as the registry holds it: the version that the alias `target` points at."""

    target: str
    model: str
    version: int

    @property
    def model_uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.model}@{self.target}"


class Stop(IntEnum):
    """How much somebody wants the run to stop."""

    NO = 0
    GENTLY = 1
    """Save the state first."""
    NOW = 2
    """Do not wait for that; the last checkpoint has to do."""


@dataclass(frozen=True, kw_only=True)
class Outage:
    """MLflow does not answer, or says no."""

    message: str
    since: datetime
    refused: bool = False
    """It answered and said no: waiting is no use."""
    damaged: bool = False
    """What it keeps of a model is not what the trainer handed over."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The API server's answer to the last start, known until one goes through.

    Whoever was refused decides again with it before telling anybody, so that the status never says that something
    is being started that is not.
    """

    trouble: Trouble
    at: datetime


@dataclass(frozen=True, kw_only=True)
class OnCluster:
    """What only a run on a cluster has."""

    platform: Platform
    deleting: bool = False
    """The run has a deletion timestamp."""
    finalizer: bool = False
    """The run carries our finalizer."""
    earlier: tuple[Attempt, ...] = ()
    """Attempts before `Observed.attempt` whose RayJobs still exist, by number."""
    kuberay: bool = True
    """The cluster knows RayJobs."""
    refusal: Refusal | None = None


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything that one decision is made from."""

    run: CompressionRun
    attempt: Attempt | None = None
    """On a laptop the attempt that this reconcile started; on a cluster the last one whose RayJob exists."""
    stop: Stop = Stop.NO
    tracking_uri: str
    """As it may be shown: without a password."""
    tracked: TrackedRun | None = None
    """As last read where MLflow does not answer now."""
    family: Family | None = None
    """What a finished trainer handed over for this very spec; looked for while no trainer is alive, after the last
    one was seen to have ended: only then is its absence a fact."""
    registrations: tuple[Registration, ...] = ()
    """The members of the family that are completely registered."""
    report: str | None = None
    """Where the family's report is."""
    outage: Outage | None = None
    previous: CompressionRunStatus = field(default_factory=CompressionRunStatus)
    """The status as last written: the source of earlier attempts, of transition times and of the end."""
    cluster: OnCluster | None = None
    """None on a laptop."""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A run whose manifest this operator cannot read, although the API server let it through."""

    problems: tuple[str, ...]
    """One line each, as `find_problems` says them."""
    generation: int | None
    deleting: bool
    finalizer: bool
    attempts: tuple[Attempt, ...] = ()
    """Attempts whose RayJobs exist."""
    previous: CompressionRunStatus = field(default_factory=CompressionRunStatus)


@dataclass(frozen=True, kw_only=True)
class EnsureFinalizer:
    """Put our finalizer on the run, so that its deletion waits for its job to be stopped."""


@dataclass(frozen=True, kw_only=True)
class RemoveFinalizer:
    """Let the deletion of the run go on."""


@dataclass(frozen=True, kw_only=True)
class StartAttempt:
    """Start the trainer; it goes on where the storage stands."""

    number: int
    memory: Memory | None = None
    """None on a laptop, where nothing limits it."""


@dataclass(frozen=True, kw_only=True)
class StopAttempt:
    """On a laptop: ask the trainer to save its state and end; with `force`, end it at once."""

    number: int
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class SuspendJob:
    """On a cluster: take the pods of the attempt away, or give them back. Never where the run queues."""

    number: int
    suspended: bool


@dataclass(frozen=True, kw_only=True)
class DeleteAttempt:
    """On a cluster: stop the attempt and delete its objects."""

    number: int


@dataclass(frozen=True, kw_only=True)
class RegisterMembers:
    """Make the registry hold every member of the family."""

    family: Family


@dataclass(frozen=True, kw_only=True)
class DeleteRun:
    """On a cluster: delete the run, whose time to live is over."""


Action = (
    EnsureFinalizer
    | RemoveFinalizer
    | StartAttempt
    | StopAttempt
    | SuspendJob
    | DeleteAttempt
    | RegisterMembers
    | DeleteRun
)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do now and what to tell."""

    actions: tuple[Action, ...] = ()
    """In this order."""
    status: CompressionRunStatus
    """As it is once the actions are taken."""
    done: bool = False
    """Nothing is left to do until somebody asks again."""
    requeue_after: float | None = None
    """Seconds after which to decide again even if nothing happens; None: only when something happens."""
