"""What a pass of the reconcile knows, and what it can decide: plain frozen values, no clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from ireko_api.handoff import Failure, Family, Progress
from ireko_api.spec import CompressionRun
from ireko_api.status import CompressionRunStatus
from ireko_operator.launch import Attempt


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


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything that one decision is made from."""

    run: CompressionRun
    attempt: Attempt | None = None
    """The attempt that this reconcile started, or None before it has started one."""
    stop: Stop = Stop.NO
    tracking_uri: str
    """As it may be shown: without a password."""
    tracked: TrackedRun | None = None
    """As last read where MLflow does not answer now."""
    family: Family | None = None
    """What a finished trainer handed over for this very spec; looked for while no trainer is alive."""
    registrations: tuple[Registration, ...] = ()
    """The members of the family that are completely registered."""
    report: str | None = None
    """Where the family's report is."""
    outage: Outage | None = None
    previous: CompressionRunStatus = field(default_factory=CompressionRunStatus)
    """The status as last written: the source of earlier attempts and of transition times only."""


@dataclass(frozen=True, kw_only=True)
class StartAttempt:
    """Start the trainer; it goes on where the storage stands."""

    number: int


@dataclass(frozen=True, kw_only=True)
class StopAttempt:
    """Ask the trainer to save its state and end; with `force`, end it at once."""

    number: int
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class RegisterMembers:
    """Make the registry hold every member of the family."""

    family: Family


Action = StartAttempt | StopAttempt | RegisterMembers


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do now and what to tell."""

    actions: tuple[Action, ...] = ()
    status: CompressionRunStatus
    done: bool = False
    """Nothing is left to do until somebody asks again."""
