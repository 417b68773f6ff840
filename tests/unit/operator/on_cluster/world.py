"""A cluster of plain data: RayJobs that KubeRay moves on, a queue, MLflow, and a run that is decided for.

Everything that happens is an event; after each of them the run is reconciled as the operator does it: decide,
act, look again, until nothing is left to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache

from cluster_runs import NOW, run_with, seen, view

from ireko_api.handoff import Failure, Family
from ireko_api.spec import CompressionRun
from ireko_api.status import CompressionRunStatus
from ireko_operator.launch import Attempt, ClusterView, WorkloadView
from ireko_operator.reconcile.attempt_ends import is_live
from ireko_operator.reconcile.plan import plan
from ireko_operator.reconcile.state import (
    Action,
    Decision,
    DeleteAttempt,
    DeleteRun,
    EnsureFinalizer,
    Observed,
    Outage,
    RegisterMembers,
    Registration,
    RemoveFinalizer,
    StartAttempt,
    SuspendJob,
)

MOST_LOOKS = 6
MAX_ATTEMPTS = 3


@cache
def the_run(*, suspend: bool, queue: str | None) -> CompressionRun:
    return run_with(
        suspend=suspend,
        queueName=queue,
        maxAttempts=MAX_ATTEMPTS,
        maxMemory="5Gi",
        activeDeadlineSeconds=7200,
        pendingDeadlineSeconds=600,
        ttlSecondsAfterFinished=3600,
    )


@dataclass(kw_only=True)
class Job:
    """A RayJob and its pods."""

    view: ClusterView
    failure: Failure | None = None
    deleted_at: datetime | None = None

    @property
    def lives(self) -> bool:
        return is_live(self.view)

    def end(self, **changes: object) -> None:
        self.view = replace(self.view, live_pods=0, ready_pods=0, **changes)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class World:
    """Everything around one run."""

    family_to_be: Family
    queue: str | None = None
    now: datetime = NOW
    suspend: bool = False
    finalizer: bool = False
    deleting: bool = False
    gone: bool = False
    outage: Outage | None = None
    family: Family | None = None
    registrations: tuple[Registration, ...] = ()
    status: CompressionRunStatus = field(default_factory=CompressionRunStatus)
    jobs: dict[int, Job] = field(default_factory=dict)
    started: list[int] = field(default_factory=list)

    # --- the operator ---

    def observed(self) -> Observed:
        attempts = [
            Attempt(
                number=number,
                alive=job.lives,
                failure=job.failure,
                stopping_since=job.deleted_at,
                cluster=job.view,
            )
            for number, job in sorted(self.jobs.items())
        ]
        alive = any(attempt.alive for attempt in attempts)
        return seen(
            the_run(suspend=self.suspend, queue=self.queue),
            attempt=attempts[-1] if attempts else None,
            earlier=tuple(attempts[:-1]),
            finalizer=self.finalizer,
            deleting=self.deleting,
            outage=self.outage,
            family=None if alive or self.outage else self.family,
            registrations=() if alive or self.outage else self.registrations,
            previous=self.status,
        )

    def decide(self, *, later: float = 0) -> Decision:
        return plan(self.observed(), now=self.now + timedelta(seconds=later))

    def reconcile(self) -> Decision:
        """Look and act until nothing is left to do; the last decision."""
        for _ in range(MOST_LOOKS):
            decision = self.decide()
            self.status = decision.status
            if not decision.actions or self.gone:
                return decision
            for action in decision.actions:
                self._perform(action)
            if self.outage is not None and all(isinstance(a, RegisterMembers) for a in decision.actions):
                return decision
        raise AssertionError(f"not content after {MOST_LOOKS} looks: {decision}")

    def _perform(self, action: Action) -> None:
        match action:
            case EnsureFinalizer():
                self.finalizer = True
            case RemoveFinalizer():
                assert all(not job.lives or job.deleted_at for job in self.jobs.values())
                self.finalizer = False
                self.gone = self.deleting
            case StartAttempt(number=number):
                self._start(number)
            case SuspendJob(number=number, suspended=suspended):
                assert self.queue is None, "the queue decides"
                self.jobs[number].view = replace(self.jobs[number].view, suspended=suspended)
            case DeleteAttempt(number=number):
                assert self.jobs[number].deleted_at is None, "deleted twice"
                self.jobs[number].deleted_at = self.now
                self.jobs[number].view = replace(self.jobs[number].view, deleting=True)
            case RegisterMembers(family=family):
                if self.outage is None:
                    self.registrations = tuple(
                        Registration(target=m.target, model="demo", version=1) for m in family.members
                    )
            case DeleteRun():
                self.delete_run()
            case _:
                raise AssertionError(f"{action} is not for a cluster")

    def _start(self, number: int) -> None:
        assert not self.suspend
        assert not self.deleting
        for other, job in self.jobs.items():
            assert other == number or (not job.lives and job.view.live_pods == 0), "two attempts at once"
        if number in self.jobs:
            return
        assert self.started.count(number) == 0 or number == max(self.started), "an old attempt again"
        self.started.append(number)
        self.jobs[number] = Job(
            view=view(
                number,
                job_status="",
                deployment_status="",
                ready_pods=0,
                live_pods=0,
                created_at=self.now,
                suspended=self.queue is not None,
                workload=WorkloadView(state="Pending") if self.queue else None,
            )
        )

    # --- what happens ---

    def current(self) -> Job | None:
        """The last RayJob, if it lives and nobody deletes it."""
        job = self.jobs[max(self.jobs)] if self.jobs else None
        return job if job is not None and job.lives and job.deleted_at is None else None

    def kuberay_moves_on(self) -> None:
        """One step of KubeRay for every RayJob."""
        for number, job in list(self.jobs.items()):
            if job.deleted_at is not None:
                del self.jobs[number]
            elif job.lives:
                self._move(job)

    def _move(self, job: Job) -> None:
        state, suspended = job.view.deployment_status, job.view.suspended
        if suspended and state in ("Initializing", "Running"):
            job.view = replace(job.view, deployment_status="Suspending")
        elif state == "Suspending":
            job.view = replace(
                job.view, deployment_status="Suspended", job_status="", live_pods=0, ready_pods=0
            )
        elif state == "Suspended" and not suspended:
            job.view = replace(job.view, deployment_status="")
        elif state == "":
            job.view = replace(job.view, deployment_status="Initializing")
        elif state == "Initializing":
            job.view = replace(job.view, deployment_status="Running", live_pods=2, ready_pods=2)
        elif state == "Running":
            job.view = replace(job.view, job_status="RUNNING")

    def queue_moves_on(self) -> None:
        """The queue lets the run through, or takes its place away."""
        job = self.current()
        if job is None or job.view.workload is None:
            return
        admitted = job.view.workload.state == "Admitted"
        state: WorkloadView = WorkloadView(state="Evicted" if admitted else "Admitted")
        job.view = replace(job.view, workload=state, suspended=admitted)

    def trainer_succeeds(self) -> None:
        job = self.current()
        if job is not None and job.view.job_status == "RUNNING":
            self.family = self.family_to_be
            job.end(job_status="SUCCEEDED", deployment_status="Complete")

    def trainer_fails(self, failure: Failure | None, **changes: object) -> None:
        job = self.current()
        if job is not None and job.view.job_status == "RUNNING":
            job.failure = failure
            job.end(job_status="FAILED", deployment_status="Failed", reason="AppFailed", **changes)

    def head_is_lost(self) -> None:
        job = self.current()
        if job is not None and job.view.deployment_status == "Running":
            job.view = replace(job.view, head_lost=True)

    def job_vanishes(self) -> None:
        if self.jobs:
            del self.jobs[max(self.jobs)]

    def somebody_deletes_the_job(self) -> None:
        job = self.current()
        if job is not None:
            job.deleted_at = self.now
            job.view = replace(job.view, deleting=True)

    def pods_linger(self) -> None:
        if self.jobs:
            job = self.jobs[max(self.jobs)]
            job.view = replace(job.view, live_pods=1)

    def pods_end(self) -> None:
        for job in self.jobs.values():
            if not job.lives:
                job.view = replace(job.view, live_pods=0)

    def mlflow_comes_and_goes(self) -> None:
        self.outage = None if self.outage else Outage(message="MLflow is away.", since=self.now)

    def user_pauses_or_resumes(self) -> None:
        self.suspend = not self.suspend

    def delete_run(self) -> None:
        self.deleting = True
        self.gone = not self.finalizer

    def operator_forgets_the_last_status(self) -> None:
        """As when it dies between acting and writing: the attempts it started last are not written down."""
        last = max(self.started, default=0)
        kept = tuple(a for a in self.status.attempts if a.number != last)
        if self.status.phase not in ("Succeeded", "Failed"):
            self.status = self.status.model_copy(update={"attempts": kept})

    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
