"""What one process remembers of a run between two passes. Losing it costs a few reads, never correctness."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from ireko_api.spec import CompressionRun
from ireko_api.status import CompressionRunStatus
from ireko_operator.launch.kuberay import Traces
from ireko_operator.reconcile.observe import Tracked
from ireko_operator.reconcile.state import Outage, Refusal, Registration


@dataclass(frozen=True, kw_only=True)
class Written:
    """A status as it was sent and as the API server keeps it, which may know fewer fields."""

    sent: CompressionRunStatus
    kept: bytes


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of one generation of a run, read."""

    generation: int
    run: CompressionRun | None
    problems: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Ending:
    """What MLflow says of an attempt that has ended, and the registration that follows from it."""

    attempt: int
    reading: Future[Tracked] | None = None
    read: Tracked | None = None
    tried_at: float = float("-inf")
    """When MLflow last answered or failed to."""
    registering: Future[tuple[Registration, ...]] | None = None
    unregistered: Outage | None = None
    """What kept the last registration from being done."""


@dataclass(kw_only=True)
class RunMemory:
    """Of one run, by its uid; used by one thread at a time."""

    uid: str
    manifest: Manifest | None = None
    refusal: Refusal | None = None
    ending: Ending | None = None
    traces: Traces = field(default_factory=Traces)
    looked_for: dict[int, float] = field(default_factory=dict)
    """When the API server was asked for an attempt that the cache does not have."""
    written: Written | None = None
    detail_written: float = float("-inf")
    """When a status was last written that differed in nothing but progress and wording."""
    gone: bool = False
    """The run was deleted: nobody wants what is still being done for it."""
