"""The kinds that the operator watches, and which of their objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ireko_operator.kube.keys import JOBS, RUNS, Kind, Resource
from ireko_operator.launch.rayjob import LABEL_MANAGED_BY, MANAGED_BY

_OURS = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One kind."""

    resource: Resource
    older: tuple[Resource, ...] = ()
    """The same in versions that are asked for where the API server does not know the first."""
    selector: str
    """Labels that objects must have to be told of; empty for all."""
    missing: str = ""
    """What to say where the API server does not know the kind; empty where it always does or nobody minds."""


Served = Mapping[Kind, Resource]
"""The kinds that the API server knows, in the version that is watched."""

WATCHED = {
    Kind.RUNS: Watched(resource=RUNS, selector=""),
    Kind.JOBS: Watched(
        resource=JOBS,
        selector=_OURS,
        missing="KubeRay is not installed: the API server knows no RayJob. Runs wait until it is.",
    ),
    Kind.CLUSTERS: Watched(
        resource=Resource(group="ray.io", version="v1", plural=Kind.CLUSTERS), selector=_OURS
    ),
    Kind.PODS: Watched(resource=Resource(group="", version="v1", plural=Kind.PODS), selector=_OURS),
    Kind.WORKLOADS: Watched(
        resource=Resource(group="kueue.x-k8s.io", version="v1beta2", plural=Kind.WORKLOADS),
        older=(Resource(group="kueue.x-k8s.io", version="v1beta1", plural=Kind.WORKLOADS),),
        selector="",
    ),
}
"""KubeRay copies a RayJob's labels to its RayCluster, and the pod templates carry them."""
