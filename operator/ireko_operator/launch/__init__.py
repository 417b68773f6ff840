"""How a trainer is started, watched and stopped: one protocol, one module per place where trainers run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from ireko_api.handoff import Failure, RunRequest
from ireko_api.reasons import Reason


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that is wrong with an attempt's objects now; it is gone from the next view once it is mended."""

    reason: Reason
    message: str
    """One or two sentences for people: what is wrong, of which object, and what to do."""


WorkloadState = Literal["Pending", "Admitted", "Evicted", "Finished"]


@dataclass(frozen=True, kw_only=True)
class WorkloadView:
    """Kueue's Workload of a RayJob: where the attempt stands in its queue."""

    state: WorkloadState
    reason: str = ""
    """Kueue's word, e.g. `Preempted` or `WaitingForQuota`."""
    message: str = ""
    """Kueue's sentence, cleaned and cut."""


@dataclass(frozen=True, kw_only=True)
class ClusterView:
    """The objects of an attempt on Kubernetes, as they were last seen."""

    ray_job: str
    """Name of the RayJob."""
    job_status: str = ""
    """Ray's view: empty, PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    deployment_status: str = ""
    """KubeRay's view: empty, Initializing, Running, Complete, Failed, ValidationFailed, Suspending, …"""
    reason: str = ""
    """KubeRay's word for a failure, e.g. `AppFailed`."""
    message: str = ""
    """KubeRay's sentence, cleaned and cut."""
    ray_cluster: str = ""
    """Name of the RayCluster, once there is one."""
    suspended: bool = False
    """`spec.suspend` of the RayJob: set by us, or by Kueue where the run queues."""
    deleting: bool = False
    """The RayJob has a deletion timestamp."""
    created_at: datetime | None = None
    """Creation timestamp of the RayJob."""
    finished_at: datetime | None = None
    """`status.endTime` of the RayJob."""
    ready_pods: int = 0
    """Pods of the attempt's Ray cluster that are ready."""
    live_pods: int = 0
    """Pods of the attempt's Ray cluster that have not ended, terminating ones included."""
    out_of_memory: bool = False
    """A container of the attempt was killed for memory since the attempt began."""
    head_lost: bool = False
    """The head pod that the trainer ran in is gone or was replaced although nobody stopped the job."""
    troubles: tuple[Trouble, ...] = ()
    """What keeps its pods from running now, worst first."""
    workload: WorkloadView | None = None
    """None where no queue is concerned, or before Kueue has seen the RayJob."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the trainer, as it looks now."""

    number: int
    alive: bool
    """Whether it may still do something. On a cluster: `attempt_ends.is_live` of its view."""
    exit_code: int | None = None
    """None while it is alive, where a signal ended it, and on a cluster, which does not tell."""
    signal: int | None = None
    """The signal that ended it."""
    stopping_since: datetime | None = None
    """When it was first asked to stop."""
    failure: Failure | None = None
    """What it recorded about why it ended, if it could."""
    log: str = ""
    """Where its output is."""
    log_tail: tuple[str, ...] = ()
    """The last lines of its output, once it has ended."""
    cluster: ClusterView | None = None
    """Its objects, on a cluster."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the pods of an attempt may use, in bytes."""

    worker: int
    head: int


class Launcher(Protocol):
    """Starts trainers and says how they are. No method blocks for longer than a system call or a request."""

    def start(self, request: RunRequest) -> None:
        """Start the attempt that `request` names; starting it twice starts one."""

    def observe(self, number: int) -> Attempt | None:
        """The attempt of that number, or None when it was never started."""

    def stop(self, number: int, *, force: bool) -> None:
        """Ask the attempt to save its state and end; with `force`, end it at once."""


class ClusterLauncher(Protocol):
    """The same for one run on a cluster, where attempts are objects that outlive whoever made them."""

    def start(self, number: int, *, memory: Memory) -> None:
        """Create the objects of the attempt unless they exist."""

    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt of the run whose RayJob exists, by number."""

    def suspend(self, number: int, *, suspended: bool) -> None:
        """Take the attempt's pods away, which save their state first, or give them back."""

    def delete(self, number: int) -> None:
        """Delete the attempt's objects; KubeRay stops the job first. Deleting twice deletes once."""
