"""Names for what the operator handles on a cluster: keys of runs, kinds of watched objects, managers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ireko_api import spec

Key = tuple[str, str]
"""Namespace and name: what a run is queued, reconciled and logged by."""

FINALIZER = "ireko.dev/operator"

MANAGER = "ireko-operator"
"""Field manager of everything but the status."""
STATUS_MANAGER = "ireko-operator-status"


class Kind(StrEnum):
    """The kinds of objects that the operator watches, by the plural that the API server knows them by."""

    RUNS = "compressionruns"
    JOBS = "rayjobs"
    CLUSTERS = "rayclusters"
    PODS = "pods"
    WORKLOADS = "workloads"


@dataclass(frozen=True, kw_only=True)
class Resource:
    """Where objects of one kind live in the API."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str, name: str | None = None, subresource: str | None = None) -> str:
        """The path of the collection in a namespace, of one object, or of its subresource."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, "namespaces", namespace, self.plural, *([name] if name else [])]
        return "/".join([*parts, *([subresource] if subresource else [])])


RUNS = Resource(group=spec.GROUP, version=spec.VERSION, plural=Kind.RUNS)
JOBS = Resource(group="ray.io", version="v1", plural=Kind.JOBS)
CONFIG_MAPS = Resource(group="", version="v1", plural="configmaps")
EVENTS = Resource(group="events.k8s.io", version="v1", plural="events")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What came of one look at a run."""

    requeue_after: float | None = None
    """Seconds after which to look again though nothing happened; None: only when something happens."""
    changed: bool = False
    """Whether anything was written."""


class Reconciler(Protocol):
    """Brings one run forward; called by one thread at a time per key."""

    def reconcile(self, key: Key) -> Pass:
        """Look at the run and do what is to be done now."""
