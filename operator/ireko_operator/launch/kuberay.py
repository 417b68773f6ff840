"""The trainer as a KubeRay RayJob, one per attempt.

Attempts are looked at in the cache and only written to the API server, which is asked for no more than what no
watch tells. Their names follow from the run and the number, so a start that is repeated, by this process or by
the next one, finds what is there already and takes it over when it is this run's own. An attempt also lives as
long as pods of it do: a RayJob may be gone while its trainer is still saving.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ireko_api.reasons import Reason
from ireko_api.spec import CompressionRun
from ireko_operator.kube.cache import Cache, Snapshot
from ireko_operator.kube.client import (
    AlreadyExistsError,
    Body,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeClient,
    KubeError,
    NotFoundError,
)
from ireko_operator.kube.keys import CONFIG_MAPS, EVENTS, JOBS, MANAGER, Kind, Resource
from ireko_operator.kube.objects import JobObject, PodObject, WorkloadObject
from ireko_operator.kube.refresh import refresh
from ireko_operator.launch import Attempt, ClusterView, Memory, Trouble, WorkloadView
from ireko_operator.launch.hangs import Hangs
from ireko_operator.launch.platform import Platform
from ireko_operator.launch.rayjob import attempt_name, build_attempt
from ireko_operator.launch.troubles import pod_troubles, refusal, trouble
from ireko_operator.launch.words import job_failure, job_message, sentence
from ireko_operator.reconcile import attempt_ends

LOST_NODE_GRACE = timedelta(seconds=60)
"""How long after its deletion should be over a pod still counts: that of a lost node never goes by itself."""
_CLOCK_SKEW = timedelta(seconds=60)
"""Between the clock of the head's node, which dates the start of training, and that of the API server."""
_DEPLOYED = ("Running", "Complete", "Failed")


@dataclass(kw_only=True)
class Traces:
    """What was seen of the attempts of one run before and cannot be seen now."""

    heads: dict[int, str] = field(default_factory=dict)
    """uid of the head pod that the trainer of an attempt was seen running in."""
    without_job: dict[int, datetime] = field(default_factory=dict)
    """When pods of an attempt were first seen without its RayJob."""
    hangs: Hangs = field(default_factory=Hangs)
    """What was asked about pods that hang."""


class NameTakenError(KubeError):
    """An object that is not this run's has the name that an attempt needs."""


class RayJobLauncher:
    """The attempts of one run, as its snapshot shows them.

    `run` is None where its manifest cannot be read: then attempts are seen and deleted, but none is started.
    """

    def __init__(
        self,
        *,
        client: KubeClient,
        cache: Cache,
        snapshot: Snapshot,
        run: CompressionRun | None,
        platform: Platform,
        traces: Traces,
        now: datetime,
    ) -> None:
        self._client = client
        self._cache = cache
        self._snapshot = snapshot
        self._run = run
        self._platform = platform
        self._traces = traces
        self._now = now

    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt whose RayJob exists or of which pods are left, by number."""
        found = {job.attempt: self._attempt(job) for job in self._snapshot.jobs if job.attempt > 0}
        for pod in self._snapshot.pods:
            if pod.attempt > 0 and pod.attempt not in found and self._lives(pod):
                found[pod.attempt] = self._leftover(pod.attempt)
        return tuple(found[number] for number in sorted(found))

    def start(self, number: int, *, memory: Memory) -> None:
        """Create the ConfigMap and the RayJob of the attempt unless they exist.

        Raises `NameTakenError` where they exist and belong to somebody else.
        """
        if self._run is None:
            raise ValueError("a run whose manifest cannot be read was to be started")
        objects = build_attempt(self._run, number=number, memory=memory, platform=self._platform)
        self._ensure(CONFIG_MAPS, objects.config_map)
        self._cache.learn(Kind.JOBS, self._ensure(JOBS, objects.rayjob))

    def suspend(self, number: int, *, suspended: bool) -> None:
        """Take the attempt's pods away, or give them back."""
        job = self._job(number)
        if job is None or job.suspend is suspended:
            return
        body = {"metadata": {"uid": job.meta.uid}, "spec": {"suspend": suspended}}
        try:
            answer = self._client.merge(
                JOBS, namespace=job.meta.namespace, name=job.meta.name, body=body, manager=MANAGER
            )
        except (NotFoundError, ConflictError):
            refresh(self._client, self._cache, resource=JOBS, meta=job.meta)
        else:
            self._cache.learn(Kind.JOBS, answer)

    def delete(self, number: int) -> None:
        """Delete the attempt's RayJob; KubeRay stops the job first and its pods go after it."""
        job = self._job(number)
        if job is None or job.meta.deleting is not None:
            return
        try:
            answer = self._client.delete(
                JOBS, namespace=job.meta.namespace, name=job.meta.name, uid=job.meta.uid
            )
        except (NotFoundError, ConflictError):
            self._cache.forget(Kind.JOBS, job.meta)  # that very RayJob is gone already
            return
        if answer.get("kind") == "Status":
            self._cache.forget(Kind.JOBS, job.meta)
        else:
            self._cache.learn(Kind.JOBS, answer)

    def look_for(self, number: int) -> None:
        """Ask the API server for an attempt that the cache does not have."""
        meta = self._snapshot.run.meta
        name = attempt_name(run=meta.name, uid=meta.uid, number=number)
        try:
            self._cache.learn(Kind.JOBS, self._client.get(JOBS, namespace=meta.namespace, name=name))
        except NotFoundError:
            return

    def ask_why_a_pod_hangs(self) -> None:
        """Read the events of a pod that should have started by now, if one is due."""
        pod = self._traces.hangs.pod_to_ask_about(self._expected_pods(), now=self._now)
        if pod is not None:
            events = self._client.list(
                EVENTS, namespace=pod.meta.namespace, fields=f"regarding.uid={pod.meta.uid}"
            )
            self._traces.hangs.take(pod, events, now=self._now)

    @property
    def next_question_in(self) -> float | None:
        """Seconds until `ask_why_a_pod_hangs` has something to ask; None where every pod got on."""
        return self._traces.hangs.next_question_in(self._expected_pods(), now=self._now)

    def _expected_pods(self) -> list[PodObject]:
        """The pods of attempts that nobody stops."""
        wanted = {job.attempt for job in self._snapshot.jobs if not job.suspend and job.meta.deleting is None}
        return [pod for pod in self._snapshot.pods if pod.attempt in wanted]

    def _ensure(self, resource: Resource, wanted: Body) -> Body:
        """The object as it exists now, created if need be."""
        namespace, name = self._snapshot.run.meta.namespace, wanted["metadata"]["name"]
        try:
            return self._client.create(resource, namespace=namespace, body=wanted, manager=MANAGER)
        except AlreadyExistsError:
            there = self._client.get(resource, namespace=namespace, name=name)
        owners = there["metadata"].get("ownerReferences") or ()
        if not any(owner.get("uid") == self._snapshot.run.meta.uid for owner in owners):
            raise NameTakenError(
                f"{wanted['kind']} {name} exists in {namespace} and belongs to somebody else. Delete or rename "
                "it; the run then goes on by itself."
            )
        return there

    def _job(self, number: int) -> JobObject | None:
        return next((job for job in self._snapshot.jobs if job.attempt == number), None)

    def _lives(self, pod: PodObject) -> bool:
        deleting = pod.meta.deleting
        return not pod.ended and (deleting is None or self._now < deleting + LOST_NODE_GRACE)

    def _attempt(self, job: JobObject) -> Attempt:
        view = self._view(job)
        return Attempt(
            number=job.attempt,
            alive=attempt_ends.is_live(view),
            stopping_since=job.meta.deleting,
            failure=job_failure(job.message),
            cluster=view,
        )

    def _view(self, job: JobObject) -> ClusterView:
        pods = [pod for pod in self._snapshot.pods if pod.attempt == job.attempt]
        in_cluster = [pod for pod in pods if pod.cluster]
        clusters = [item for item in self._snapshot.clusters if item.meta.owner == job.meta.uid]
        return ClusterView(
            ray_job=job.meta.name,
            job_status=job.job_status,
            deployment_status=job.deployment_status,
            reason=job.reason,
            message=job_message(job.message),
            ray_cluster=job.cluster,
            suspended=job.suspend,
            deleting=job.meta.deleting is not None,
            created_at=job.meta.created,
            finished_at=job.ended,
            ready_pods=sum(pod.ready and pod.meta.deleting is None for pod in in_cluster),
            live_pods=sum(self._lives(pod) for pod in in_cluster),
            out_of_memory=job.attempt in self._snapshot.out_of_memory,
            head_lost=self._head_lost(job, in_cluster),
            troubles=pod_troubles(pods, clusters, hanging=self._traces.hangs.troubles(pods)),
            workload=workload_view(
                item for item in self._snapshot.workloads if item.meta.owner == job.meta.uid
            ),
        )

    def _leftover(self, number: int) -> Attempt:
        """An attempt whose RayJob is gone before its last pods."""
        meta = self._snapshot.run.meta
        view = ClusterView(
            ray_job=attempt_name(run=meta.name, uid=meta.uid, number=number),
            deleting=True,
            live_pods=sum(pod.attempt == number and self._lives(pod) for pod in self._snapshot.pods),
            out_of_memory=number in self._snapshot.out_of_memory,
        )
        since = self._traces.without_job.setdefault(number, self._now)
        return Attempt(number=number, alive=True, stopping_since=since, cluster=view)

    def _head_lost(self, job: JobObject, pods: Sequence[PodObject]) -> bool:
        """Whether the head pod that the trainer runs in is going, gone or another one by now."""
        if job.deployment_status not in _DEPLOYED or job.suspend or job.meta.deleting is not None:
            self._traces.heads.pop(job.attempt, None)
            return False
        if job.deployment_status != "Running" or job.training_since is None:
            return False
        heads = [pod for pod in pods if pod.node_type == "head" and pod.cluster == job.cluster]
        well = [pod for pod in heads if _is_well(pod, since=job.training_since)]
        known = self._traces.heads.get(job.attempt)
        if known is None:
            if well:
                self._traces.heads[job.attempt] = well[0].meta.uid
            return bool(heads) and not well
        return known not in {pod.meta.uid for pod in well}


def workload_view(workloads: Iterable[WorkloadObject]) -> WorkloadView | None:
    """Where a RayJob stands in its queue: Kueue's newest Workload of it decides.

    A Workload that is evicted stays admitted until its pods are gone, and is no longer evicted once it has its quota
    again.
    """
    newest = max(workloads, key=lambda item: item.meta.version, default=None)
    if newest is None:
        return None
    true = {item.type: item for item in newest.conditions if item.status == "True"}
    if "Finished" in true:
        return WorkloadView(state="Finished", reason=true["Finished"].reason)
    if "Evicted" in true:
        cause = true.get("Preempted", true["Evicted"])
        return WorkloadView(state="Evicted", reason=cause.reason, message=sentence(cause.message))
    if "Admitted" in true:
        return WorkloadView(state="Admitted", reason=true["Admitted"].reason)
    waiting = next((item for item in newest.conditions if item.type == "QuotaReserved"), None)
    if waiting is None or waiting.status == "True":
        return WorkloadView(state="Pending")
    return WorkloadView(state="Pending", reason=waiting.reason, message=sentence(waiting.message))


def refusal_of(error: KubeError) -> Trouble | None:
    """What the API server's answer says is wrong with the run or its cluster; None for a passing trouble."""
    if isinstance(error, NameTakenError):
        return Trouble(reason=Reason.POD_REFUSED, message=str(error))
    if isinstance(error, NotFoundError) and error.kind_missing:
        return Trouble(
            reason=Reason.KUBERAY_MISSING,
            message=f"The cluster does not know RayJobs. {Reason.KUBERAY_MISSING.remedy}",
        )
    if isinstance(error, (ForbiddenError, InvalidError)):
        return trouble(refusal(str(error)), str(error))
    return None


def _is_well(pod: PodObject, *, since: datetime) -> bool:
    """Whether a head pod is the one that training began in at `since`, and stays."""
    crashed = any(
        container.exit_code and (container.ended_at is None or container.ended_at > since)
        for container in pod.containers
    )
    newer = pod.meta.created is not None and pod.meta.created > since + _CLOCK_SKEW
    return pod.meta.deleting is None and not pod.ended and not crashed and not newer
