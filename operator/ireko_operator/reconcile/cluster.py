"""The reconcile of one run on a cluster: look, plan, act, and write the status once.

    look   everything from memory: the cache that watches fill, the last poll of MLflow
    plan   `plan(observed)`, the same function as on a laptop
    act    at most a few writes; what they change is in the cache before the next look
    write  the status, when it changed

A pass over a run about which nothing is new ends after the plan and does no I/O. Looking again after acting,
in the same pass, is what makes one status out of several steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from ireko_api.spec import CompressionRun
from ireko_api.status import CompressionRunStatus
from ireko_api.validation import InvalidManifestError, parse
from ireko_operator import tracking
from ireko_operator.kube.cache import Cache, Snapshot
from ireko_operator.kube.client import ConflictError, KubeClient, KubeError, NotFoundError
from ireko_operator.kube.events import EventWriter
from ireko_operator.kube.keys import FINALIZER, Key, Pass
from ireko_operator.kube.objects import RunObject
from ireko_operator.launch import Attempt
from ireko_operator.launch.kuberay import RayJobLauncher, refusal_of
from ireko_operator.launch.platform import Platform
from ireko_operator.reconcile.endings import Endings
from ireko_operator.reconcile.memory import Manifest, RunMemory
from ireko_operator.reconcile.observe import Tracked
from ireko_operator.reconcile.ownership import Ownership
from ireko_operator.reconcile.plan import plan, plan_unreadable
from ireko_operator.reconcile.state import (
    Action,
    Decision,
    DeleteAttempt,
    DeleteRun,
    EnsureFinalizer,
    Observed,
    OnCluster,
    Refusal,
    RegisterMembers,
    RemoveFinalizer,
    StartAttempt,
    SuspendJob,
    Unreadable,
)
from ireko_operator.reconcile.writing import StatusWriter, status_in
from ireko_operator.registrar import Background, Registrar
from ireko_operator.telemetry import Telemetry
from ireko_operator.tracking_poll import Followed, TrackingPoll

_LOOKS = 6
"""In one pass, which is more than any plan needs; one that is still not content is asked again soon."""
_SOON = 1.0
_LOOKED_FOR_SECONDS = 60.0
"""How long the answer holds that an attempt's RayJob does not exist."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a process gives its reconciler."""

    client: KubeClient
    cache: Cache
    poll: TrackingPoll
    platform: Platform
    telemetry: Telemetry
    progress_interval: float
    """Seconds between two writes of a status in which nothing but progress changed."""


def cluster_reconciler(around: Surroundings) -> ClusterReconciler:
    """The reconciler of a process; `close` it when the process ends."""
    background = Background(wake=around.poll.wake)
    registrar = Registrar(background=background, fence=around.client.may_write, telemetry=around.telemetry)
    return ClusterReconciler(
        client=around.client,
        cache=around.cache,
        poll=around.poll,
        platform=around.platform,
        endings=Endings(background=background, registrar=registrar),
        status=StatusWriter(
            client=around.client,
            cache=around.cache,
            events=EventWriter(client=around.client),
            telemetry=around.telemetry,
            interval=around.progress_interval,
        ),
        telemetry=around.telemetry,
        close=background.close,
    )


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A run as one look finds it, and what is to be done."""

    run: RunObject
    launcher: RayJobLauncher
    manifest: CompressionRun | None
    uri: str | None
    decision: Decision


class ClusterReconciler:
    """Brings runs forward; one thread at a time per run, any number of runs at once."""

    def __init__(
        self,
        *,
        client: KubeClient,
        cache: Cache,
        poll: TrackingPoll,
        platform: Platform,
        endings: Endings,
        status: StatusWriter,
        telemetry: Telemetry,
        close: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._cache = cache
        self._ownership = Ownership(client=client, cache=cache)
        self._poll = poll
        self._platform = platform
        self._endings = endings
        self._status = status
        self._telemetry = telemetry
        self.close = close
        """Ends what is done in the background."""
        self._clock = clock
        self._monotonic = monotonic
        self._memories: dict[Key, RunMemory] = {}

    def reconcile(self, key: Key) -> Pass:
        """Look at the run and do what is to be done now; raises `KubeError` for what may pass."""
        snapshot = self._cache.snapshot(key)
        if snapshot is None:
            self._forget(key)
            return Pass()
        memory = self._remember(key, snapshot.run.meta.uid)
        now = self._clock()
        previous = status_in(snapshot.run)
        scene: _Scene | None = None
        for _ in range(_LOOKS):
            seen = self._look(key, memory, previous, now)
            if seen is None:
                break  # what was done until here is written all the same
            changed, scene = scene is not None, seen
            if not self._act(scene, memory, now):
                return self._conclude(key, scene, memory, now, changed=changed, soon=False)
            if memory.refusal is None:
                previous = scene.decision.status  # true now; after a refusal it is not
        if scene is None:
            return Pass()
        return self._conclude(key, scene, memory, now, changed=True, soon=True)

    def _conclude(
        self, key: Key, scene: _Scene, memory: RunMemory, now: datetime, *, changed: bool, soon: bool
    ) -> Pass:
        """Write the status and say when to look again."""
        snapshot = self._cache.snapshot(key)
        if snapshot is None or snapshot.run.meta.uid != memory.uid:
            return Pass(changed=changed)
        try:
            wrote = self._status.write(snapshot.run, scene.decision.status, memory=memory, now=now)
        except (NotFoundError, ConflictError):
            self._ownership.look_up(
                snapshot.run
            )  # deleted, and perhaps made anew, without our having heard of it
            return Pass(changed=changed, requeue_after=_SOON)
        waits = (
            scene.decision.requeue_after,
            wrote.later,
            _SOON if soon else None,
            self._endings.retry_in(memory) if not scene.decision.done else None,
            self._registration(key, scene, memory),
            scene.launcher.next_question_in,
        )
        return Pass(
            changed=changed or wrote.changed,
            requeue_after=min((wait for wait in waits if wait is not None), default=None),
        )

    # --- look ---

    def _look(
        self, key: Key, memory: RunMemory, previous: CompressionRunStatus, now: datetime
    ) -> _Scene | None:
        """The run as it is now; None where it is gone or MLflow has to answer first."""
        snapshot = self._cache.snapshot(key)
        if snapshot is None or snapshot.run.meta.uid != memory.uid:
            return None
        manifest = _manifest(snapshot.run, memory)
        launcher = self._launcher(snapshot, manifest.run, memory, now)
        launcher.ask_why_a_pod_hangs()
        attempts = launcher.attempts()
        if self._look_for_missing(launcher, attempts, memory, previous):
            return self._look(key, memory, previous, now)
        memory.gone = snapshot.run.meta.deleting is not None
        if manifest.run is None:
            decision = plan_unreadable(
                _unreadable(snapshot.run, manifest, attempts=attempts, previous=previous), now=now
            )
            uri = None
        else:
            uri = self._tracking_uri(manifest.run)
            tracked = self._tracked(key, manifest.run, attempts, uri, memory, previous, now)
            if tracked is None:
                return None
            decision = plan(
                self._observed(snapshot.run, manifest.run, attempts, uri, tracked, memory, previous), now=now
            )
        return _Scene(
            run=snapshot.run,
            launcher=launcher,
            manifest=manifest.run,
            uri=uri,
            decision=decision,
        )

    def _launcher(
        self, snapshot: Snapshot, run: CompressionRun | None, memory: RunMemory, now: datetime
    ) -> RayJobLauncher:
        return RayJobLauncher(
            client=self._client,
            cache=self._cache,
            snapshot=snapshot,
            run=run,
            platform=self._platform,
            traces=memory.traces,
            now=now,
        )

    def _look_for_missing(
        self,
        launcher: RayJobLauncher,
        attempts: tuple[Attempt, ...],
        memory: RunMemory,
        previous: CompressionRunStatus,
    ) -> bool:
        """Ask the API server for attempts that should be there and that no watch has told of."""
        known = {attempt.number for attempt in attempts}
        asked = False
        for attempt in previous.attempts:
            last = memory.looked_for.get(attempt.number, float("-inf"))
            due = self._monotonic() - last > _LOOKED_FOR_SECONDS
            if attempt.outcome == "Running" and attempt.number not in known and due:
                memory.looked_for[attempt.number] = self._monotonic()
                launcher.look_for(attempt.number)
                asked = True
        return asked

    def _tracked(
        self,
        key: Key,
        run: CompressionRun,
        attempts: tuple[Attempt, ...],
        uri: str | None,
        memory: RunMemory,
        previous: CompressionRunStatus,
        now: datetime,
    ) -> Tracked | None:
        """What MLflow says, or last said; None where it has yet to say anything about an attempt that ended."""
        numbers = [attempt.number for attempt in attempts] + [attempt.number for attempt in previous.attempts]
        number = max(numbers, default=0)
        alive = any(attempt.alive for attempt in attempts)
        if uri is None or number == 0 or memory.gone or _is_over(previous):
            self._poll.forget(memory.uid)
            memory.ending = None
            return Tracked()
        if not alive:
            self._poll.forget(memory.uid)
            return self._endings.of(run, number, key=key, uri=uri, memory=memory, now=now)
        memory.ending = None
        self._poll.follow(
            Followed(
                key=key,
                uid=memory.uid,
                spec_digest=run.spec.digest(),
                tracking_uri=uri,
                experiment=run.spec.registry.experiment,
            )
        )
        seen = self._poll.latest(memory.uid)
        return Tracked(run=seen.run, outage=seen.outage)

    def _observed(
        self,
        seen: RunObject,
        run: CompressionRun,
        attempts: tuple[Attempt, ...],
        uri: str | None,
        tracked: Tracked,
        memory: RunMemory,
        previous: CompressionRunStatus,
    ) -> Observed:
        return Observed(
            run=run,
            attempt=attempts[-1] if attempts else None,
            tracking_uri=tracking.without_password(uri or ""),
            tracked=tracked.run,
            family=tracked.family,
            registrations=tracked.registrations,
            report=tracked.report,
            outage=tracked.outage,
            previous=previous,
            cluster=OnCluster(
                platform=self._platform,
                deleting=seen.meta.deleting is not None,
                finalizer=FINALIZER in seen.meta.finalizers,
                earlier=attempts[:-1],
                refusal=memory.refusal,
            ),
        )

    def _tracking_uri(self, run: CompressionRun) -> str | None:
        """The run's MLflow server; None where the operator may not talk to it."""
        default, allowed = self._platform.tracking_uri, self._platform.allowed_tracking_uris
        wanted = run.spec.registry.tracking_uri or default
        return wanted if wanted is not None and (wanted == default or wanted in allowed) else None

    # --- act ---

    def _act(self, scene: _Scene, memory: RunMemory, now: datetime) -> bool:
        """Do what was decided; whether the cluster is another one now. Registering goes on beside it."""
        acted = False
        for action in scene.decision.actions:
            if isinstance(action, RegisterMembers):
                continue
            try:
                self._perform(action, scene)
            except KubeError as error:
                trouble = refusal_of(error) if isinstance(action, StartAttempt) else None
                if trouble is None:
                    raise
                memory.refusal = Refusal(trouble=trouble, at=now)
                return True
            if isinstance(action, StartAttempt):
                memory.refusal = None
            acted = True
        return acted

    def _perform(self, action: Action, scene: _Scene) -> None:
        match action:
            case EnsureFinalizer():
                self._ownership.hold(scene.run)
            case RemoveFinalizer():
                if self._ownership.let_go(scene.run):
                    self._count_deleted(scene.run)
            case StartAttempt(number=number, memory=pods) if pods is not None:
                log.info("Starting attempt %d", number)
                scene.launcher.start(number, memory=pods)
            case SuspendJob(number=number, suspended=suspended):
                log.info("%s attempt %d", "Suspending" if suspended else "Resuming", number)
                scene.launcher.suspend(number, suspended=suspended)
            case DeleteAttempt(number=number):
                log.info("Deleting attempt %d", number)
                scene.launcher.delete(number)
            case DeleteRun():
                self._ownership.delete(scene.run)
            case _:
                raise TypeError(f"{action} is no action of a run on a cluster")

    def _registration(self, key: Key, scene: _Scene, memory: RunMemory) -> float | None:
        """Begin to register what was decided; after the status was written, so that it shows while it lasts."""
        for action in scene.decision.actions:
            if isinstance(action, RegisterMembers) and scene.manifest is not None and scene.uri is not None:
                return self._endings.register(
                    scene.manifest, action.family, key=key, uri=scene.uri, memory=memory
                )
        return None

    def _count_deleted(self, run: RunObject) -> None:
        if run.meta.deleting is not None and not _is_over(status_in(run)):
            self._telemetry.run_finished("Deleted", _age(run, self._clock()))

    # --- memory ---

    def _remember(self, key: Key, uid: str) -> RunMemory:
        memory = self._memories.get(key)
        if memory is None or memory.uid != uid:
            self._forget(key)
            memory = self._memories[key] = RunMemory(uid=uid)
        return memory

    def _forget(self, key: Key) -> None:
        memory = self._memories.pop(key, None)
        if memory is not None:
            memory.gone = True
            self._poll.forget(memory.uid)


def _manifest(run: RunObject, memory: RunMemory) -> Manifest:
    """The manifest of the run, read once per generation."""
    if memory.manifest is None or memory.manifest.generation != run.generation:
        try:
            memory.manifest = Manifest(generation=run.generation, run=parse(run.manifest()))
        except InvalidManifestError as error:
            problems = tuple(f"{problem.path}: {problem.message}" for problem in error.problems)
            memory.manifest = Manifest(generation=run.generation, run=None, problems=problems)
    return memory.manifest


def _unreadable(
    run: RunObject, manifest: Manifest, *, attempts: tuple[Attempt, ...], previous: CompressionRunStatus
) -> Unreadable:
    return Unreadable(
        problems=manifest.problems,
        generation=run.generation,
        deleting=run.meta.deleting is not None,
        finalizer=FINALIZER in run.meta.finalizers,
        attempts=attempts,
        previous=previous,
    )


def _is_over(status: CompressionRunStatus) -> bool:
    """Whether the run has come to its end."""
    return status.phase in ("Succeeded", "Failed")


def _age(run: RunObject, now: datetime) -> float:
    return max(0.0, (now - run.meta.created).total_seconds()) if run.meta.created else 0.0
