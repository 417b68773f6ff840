"""The real Helm, and an API server where nothing is installed yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rig.api_server import Cluster, running_api_server
from rig.errors import UnavailableError
from rig.helm import Helm


def _double(group: str, kind: str, plural: str) -> dict[str, Any]:
    """The definition of somebody else's kind, without the schema."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
            ],
        },
    }


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    try:
        return Helm(directory=tmp_path_factory.mktemp("helm"))
    except UnavailableError as reason:
        pytest.skip(f"chart not rendered: {reason}")


@pytest.fixture(scope="module")
def empty_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server that knows the kinds of the Prometheus operator and nothing of ours or of KubeRay's."""
    try:
        with running_api_server(tmp_path_factory.mktemp("chart")) as cluster:
            doubles = [
                _double("monitoring.coreos.com", "ServiceMonitor", "servicemonitors"),
                _double("monitoring.coreos.com", "PrometheusRule", "prometheusrules"),
            ]
            cluster.apply("-f", "-", manifest={"apiVersion": "v1", "kind": "List", "items": doubles})
            cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
            yield cluster
    except UnavailableError as reason:
        pytest.skip(f"API tier not run: {reason}")


@pytest.fixture
def helm_there(empty_cluster: Cluster, tmp_path: Path, helm: Helm) -> Helm:
    """Helm on the empty cluster."""
    return Helm(directory=tmp_path / "helm", kubeconfig=empty_cluster.kubeconfig)
