"""The cluster as last seen: filled by watches and by the operator's own writes, read by the reconcile.

Reading here instead of asking the API server is what lets a pass over an unchanged run cost nothing. Two
things make it safe. What the operator itself wrote is entered at once from the answer, and an event that is
older than what is known is dropped, so a pass never sees the world as it was before its own last write. And
what has gone stays gone: an answer that arrives late does not bring a deleted object back.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ireko_operator.kube.keys import Key, Kind
from ireko_operator.kube.objects import (
    ClusterObject,
    JobObject,
    Meta,
    PodObject,
    RunObject,
    WorkloadObject,
    cluster_object,
    job_object,
    pod_object,
    run_object,
    workload_object,
)

Object = RunObject | JobObject | ClusterObject | PodObject | WorkloadObject
_Child = TypeVar("_Child", JobObject, ClusterObject, PodObject, WorkloadObject)

_PROJECTIONS: dict[Kind, Callable[[Mapping[str, Any]], Object]] = {
    Kind.RUNS: run_object,
    Kind.JOBS: job_object,
    Kind.CLUSTERS: cluster_object,
    Kind.PODS: pod_object,
    Kind.WORKLOADS: workload_object,
}
_REMEMBERED_DEAD = 8192
"""How many uids of objects that have gone are remembered: late answers and events arrive within seconds."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run and everything that belongs to it, at one moment."""

    run: RunObject
    jobs: tuple[JobObject, ...] = ()
    """Its RayJobs, in the order of their attempts."""
    clusters: tuple[ClusterObject, ...] = ()
    pods: tuple[PodObject, ...] = ()
    workloads: tuple[WorkloadObject, ...] = ()
    out_of_memory: frozenset[int] = frozenset()
    """The attempts of which a container was killed for memory, be its pod there or gone."""


@dataclass
class _Index:
    """Objects by the uid that they hang on."""

    members: dict[str, set[tuple[Kind, Key]]] = field(default_factory=lambda: defaultdict(set))

    def add(self, uid: str, item: tuple[Kind, Key]) -> None:
        if uid:
            self.members[uid].add(item)

    def discard(self, uid: str, item: tuple[Kind, Key]) -> None:
        if uid in self.members:
            self.members[uid].discard(item)
            if not self.members[uid]:
                del self.members[uid]

    def of(self, uid: str) -> Iterable[tuple[Kind, Key]]:
        return sorted(self.members.get(uid, ()))


class Cache:
    """Runs and their children as last seen; safe to be used by several threads, never does I/O."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._objects: dict[tuple[Kind, Key], Object] = {}
        self._above = _Index()
        self._jobs: dict[str, Key] = {}
        self._dead: OrderedDict[str, None] = OrderedDict()
        self._out_of_memory: dict[str, set[int]] = defaultdict(set)

    def observe(self, kind: str, event: str | None, body: Mapping[str, Any]) -> set[Key]:
        """Take in an event of a watch (None: of its initial list); returns the runs that it is news for."""
        seen = _PROJECTIONS[Kind(kind)](body)
        with self._lock:
            if isinstance(seen, PodObject) and seen.out_of_memory:
                self._out_of_memory[seen.meta.run_uid].add(seen.attempt)
            if event == "DELETED":
                return self._remove(Kind(kind), seen.meta)
            return self._enter(Kind(kind), seen)

    def learn(self, kind: Kind, body: Mapping[str, Any]) -> None:
        """Take in the answer to a read or a write of the operator's own."""
        seen = _PROJECTIONS[kind](body)
        with self._lock:
            if seen.meta.deleting is not None and not seen.meta.finalizers:
                self._remove(kind, seen.meta)  # nothing holds it: this was its last state
            else:
                self._enter(kind, seen)

    def forget(self, kind: Kind, meta: Meta) -> None:
        """Take in that the API server no longer has the object."""
        with self._lock:
            self._remove(kind, meta)

    def snapshot(self, key: Key) -> Snapshot | None:
        """The run and its children, or None where there is no such run."""
        with self._lock:
            run = self._objects.get((Kind.RUNS, key))
            if not isinstance(run, RunObject):
                return None
            own = self._below(run.meta.uid)
            jobs = [job for job in _of(JobObject, own) if job.meta.owner == run.meta.uid]
            owned = [child for job in jobs for child in self._below(job.meta.uid)]
            out_of_memory = frozenset(self._out_of_memory.get(run.meta.uid, ()))
        return Snapshot(
            run=run,
            jobs=tuple(sorted(jobs, key=lambda job: job.attempt)),
            clusters=tuple(_of(ClusterObject, owned)),
            pods=tuple(_of(PodObject, own)),
            workloads=tuple(_of(WorkloadObject, owned)),
            out_of_memory=out_of_memory,
        )

    def runs(self) -> tuple[Key, ...]:
        """The keys of all runs."""
        with self._lock:
            return tuple(key for kind, key in self._objects if kind is Kind.RUNS)

    def _enter(self, kind: Kind, seen: Object) -> set[Key]:
        place = (kind, seen.meta.key)
        known = self._objects.get(place)
        late = known is not None and seen.meta.version < known.meta.version
        if late or seen.meta.uid in self._dead:
            return set()
        if known is not None and known.meta.uid != seen.meta.uid:
            self._remove(kind, known.meta)  # deleted and made anew; the end of the first was missed
            known = None
        self._objects[place] = seen
        if known is None:
            self._attach(place, seen.meta)
        same = known is not None and _without_version(seen) == _without_version(known)
        return set() if same else self._news(kind, seen.meta)

    def _remove(self, kind: Kind, meta: Meta) -> set[Key]:
        self._dead[meta.uid] = None
        while len(self._dead) > _REMEMBERED_DEAD:
            self._dead.popitem(last=False)
        place = (kind, meta.key)
        known = self._objects.get(place)
        if known is None or known.meta.uid != meta.uid:
            return set()
        news = self._news(kind, known.meta)
        del self._objects[place]
        for uid in _hangs_on(kind, known.meta):
            self._above.discard(uid, place)
        self._jobs.pop(meta.uid, None)
        if kind is Kind.RUNS:
            self._out_of_memory.pop(meta.uid, None)
        return news

    def _attach(self, place: tuple[Kind, Key], meta: Meta) -> None:
        for uid in _hangs_on(place[0], meta):
            self._above.add(uid, place)
        if place[0] is Kind.JOBS and meta.run is not None:
            self._jobs[meta.uid] = meta.run

    def _news(self, kind: Kind, meta: Meta) -> set[Key]:
        """The runs that a change of this object concerns."""
        if kind is Kind.RUNS:
            return {meta.key}
        run = meta.run or self._jobs.get(meta.owner)
        return {run} if run is not None else set()

    def _below(self, uid: str) -> list[Object]:
        return [self._objects[place] for place in self._above.of(uid)]


def _hangs_on(kind: Kind, meta: Meta) -> tuple[str, ...]:
    """The uid under which an object is found: of the run for jobs and pods, of the RayJob for the others."""
    if kind is Kind.RUNS:
        return ()
    uid = meta.run_uid if kind in (Kind.JOBS, Kind.PODS) else meta.owner
    return (uid,) if uid else ()


def _of(kind: type[_Child], objects: Iterable[Object]) -> list[_Child]:
    return [item for item in objects if isinstance(item, kind)]


def _without_version(item: Object) -> Object:
    return replace(item, meta=replace(item.meta, version=0))
