"""Why the pods of an attempt do not run, read from what Kubernetes writes on pods and clusters anyway.

Secrets and claims themselves are never asked for: an operator that may read Secrets is a way to read them.
Messages leave out what changes while the trouble stays the same, such as counts of seconds, because each
new message is a write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ireko_api.reasons import Reason
from ireko_operator.kube.objects import ClusterObject, ContainerObject, PodObject
from ireko_operator.launch import Trouble
from ireko_operator.launch.words import sentence

_WORST_FIRST = (
    Reason.SECRET_MISSING,
    Reason.CONFIG_MAP_MISSING,
    Reason.SERVICE_ACCOUNT_MISSING,
    Reason.STORAGE_MISSING,
    Reason.QUOTA_EXCEEDED,
    Reason.IMAGE_PULL_FAILED,
    Reason.POD_REFUSED,
    Reason.PODS_FAILING,
    Reason.UNSCHEDULABLE,
)
_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_PULL_ERROR = re.compile(
    r"(?:Back-off pulling image \S+:? ?)?(?:(?:ErrImagePull|ImagePullBackOff): ?)?(.*)", re.S
)
_NOT_STARTED = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreCreateHookError",
    "PreStartHookError",
    "PostStartHookError",
}
_VOLUME = re.compile(
    r"persistentvolumeclaim|PersistentVolumeClaim|volume node affinity|persistent volumes?\b"
)
_SECRET = re.compile(r"\bsecrets? \"|in Secret |non-existent secret key", re.I)
_CONFIG_MAP = re.compile(r"\bconfigmaps? \"|in ConfigMap |non-existent config key", re.I)
_QUOTA = re.compile(
    r"exceeded quota|failed quota|must specify (limits|requests)"
    r"|(maximum|minimum) .* usage per (Pod|Container)|limit to request ratio"
)
_SERVICE_ACCOUNT = re.compile(r"service ?account .*not found", re.I)


def pod_troubles(
    pods: Sequence[PodObject], clusters: Sequence[ClusterObject], *, hanging: Sequence[Trouble] = ()
) -> tuple[Trouble, ...]:
    """What keeps the pods of an attempt from running, worst first, each trouble once.

    `hanging` is what is known of pods that say nothing themselves.
    """
    found: dict[Reason, Trouble] = {}
    waiting = [pod for pod in pods if pod.meta.deleting is None and not pod.ended]
    for trouble in (
        *(trouble for cluster in clusters for trouble in _of_cluster(cluster)),
        *(trouble for pod in sorted(waiting, key=lambda pod: pod.meta.name) for trouble in _of_pod(pod)),
        *hanging,
    ):
        found.setdefault(trouble.reason, trouble)
    return tuple(sorted(found.values(), key=lambda trouble: _WORST_FIRST.index(trouble.reason)))


def refusal(message: str) -> Reason:
    """The reason for which the API server refuses a pod or a RayJob with `message`."""
    if _QUOTA.search(message):
        return Reason.QUOTA_EXCEEDED
    if _SERVICE_ACCOUNT.search(message):
        return Reason.SERVICE_ACCOUNT_MISSING
    return Reason.POD_REFUSED


def trouble(reason: Reason, what: str) -> Trouble:
    """A trouble in Kubernetes' words, with what to do about it."""
    return Trouble(reason=reason, message=f"{sentence(what).rstrip('.')}. {reason.remedy}")


def of_mount(pod: PodObject, message: str) -> Trouble:
    """The trouble of a pod one of whose volumes cannot be mounted, from the kubelet's sentence about it."""
    reason = _what_is_missing(message) or Reason.STORAGE_MISSING
    return trouble(reason, f"The pod {pod.meta.name} cannot start: {message}")


def _what_is_missing(message: str) -> Reason | None:
    """What a pod names that is not in its namespace, or lacks a key, by the kubelet's words."""
    if _SECRET.search(message):
        return Reason.SECRET_MISSING
    return Reason.CONFIG_MAP_MISSING if _CONFIG_MAP.search(message) else None


def _of_cluster(cluster: ClusterObject) -> Iterable[Trouble]:
    for condition in cluster.conditions:
        if condition.type == "ReplicaFailure" and condition.status == "True":
            yield trouble(refusal(condition.message), condition.message or condition.reason)


def _of_pod(pod: PodObject) -> Iterable[Trouble]:
    for condition in pod.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            missing = _VOLUME.search(condition.message)
            reason = Reason.STORAGE_MISSING if missing else Reason.UNSCHEDULABLE
            yield trouble(reason, f"The pod {pod.meta.name} waits: {condition.message or condition.reason}")
    for container in pod.containers:
        yield from _of_container(pod, container)


def _of_container(pod: PodObject, container: ContainerObject) -> Iterable[Trouble]:
    reason, message = container.waiting_reason, container.waiting_message
    if reason in _PULL:
        error = _PULL_ERROR.fullmatch(message)
        why = (error.group(1) if error else message) or reason
        yield trouble(Reason.IMAGE_PULL_FAILED, f"The image {container.image} cannot be pulled: {why}")
    elif reason in _NOT_STARTED:
        kind = _what_is_missing(message) or Reason.PODS_FAILING
        yield trouble(kind, f"The pod {pod.meta.name} cannot start its container: {message or reason}")
    elif _crashed(container):
        ended = container.ended_message or container.ended_reason
        status = "" if container.exit_code is None else f" with exit status {container.exit_code}"
        yield trouble(
            Reason.PODS_FAILING,
            f"The container {container.name} of the pod {pod.meta.name} ended{status}: {ended}",
        )


def _crashed(container: ContainerObject) -> bool:
    """Whether it ended badly and has not been ready again since."""
    return bool(container.exit_code) and not container.ready
