"""Tests against a real Kubernetes take their clusters from the package `rig` beside this file."""

from __future__ import annotations

from rig.fixtures import (
    api_server,
    bare_api_server,
    cluster,
    kuberay,
    namespace,
    pod_namespace,
    ray_cluster,
)

__all__ = [
    "api_server",
    "bare_api_server",
    "cluster",
    "kuberay",
    "namespace",
    "pod_namespace",
    "ray_cluster",
]
