"""What the administrator decided for every run of a cluster: given to the operator when it starts.

The author of a run chooses within it. It is plain data, so that what a run becomes can be computed, and
tested, without a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class SubmissionMode(StrEnum):
    """How KubeRay hands the trainer over to the Ray cluster."""

    K8S_JOB = "K8sJobMode"
    """By a Job whose pod follows the trainer's output. Works everywhere."""
    HTTP = "HTTPMode"
    """By KubeRay's operator itself, which has to reach the head pod."""
    SIDECAR = "SidecarMode"
    """By a container in the head pod, so that a lost head is told for certain."""


class PolicyException(StrEnum):
    """What an administrator may allow the pod templates of runs beyond what is allowed to all."""

    HOST_PATH = "HostPath"
    """Volumes that are directories of the node."""
    HOST_NAMESPACES = "HostNamespaces"
    """The node's network, process and IPC namespaces, and its users."""
    HOST_PORTS = "HostPorts"
    """Ports of the node."""
    RUN_AS_ROOT = "RunAsRoot"
    """User 0 inside the container."""
    PRIVILEGED = "Privileged"
    """Privileged containers and those that may gain privileges."""
    CAPABILITIES = "Capabilities"
    """Linux capabilities other than none."""
    UNCONFINED = "Unconfined"
    """Seccomp, AppArmor and SELinux settings, sysctls and mounts of /proc other than the container runtime's."""
    SERVICE_ACCOUNT_TOKEN = "ServiceAccountToken"
    """The service account's token inside the pod."""
    ANY_VOLUME = "AnyVolume"
    """Volumes of every kind but directories of the node."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """The settings that decide what a run becomes on this cluster."""

    trainer_image: str | None = None
    """Image of runs that name none."""
    tracking_uri: str | None = None
    """MLflow server of runs that name none."""
    allowed_tracking_uris: frozenset[str] = frozenset()
    """Further MLflow servers that runs may name."""
    exceptions: frozenset[PolicyException] = frozenset()
    """What pod templates of runs may do beyond the policy."""
    pod_defaults: Mapping[str, Any] = field(default_factory=dict)
    """A pod template under every run's own; the policy does not apply to it."""
    submission_mode: SubmissionMode = SubmissionMode.K8S_JOB
    ray_version: str = "2.60.0"
    """Version of Ray in the image, which KubeRay asks for before it turns token authentication on."""
