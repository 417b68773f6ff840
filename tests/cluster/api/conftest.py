"""What the tests of the definition have in common: runs as the API server keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.dynamic import Resource

from ireko_api.spec import API_VERSION, KIND
from rig.api_server import Cluster


@pytest.fixture(scope="session")
def runs(api_server: Cluster) -> Resource:
    """CompressionRuns, as a Python client sees them."""
    return api_server.client().resources.get(api_version=API_VERSION, kind=KIND)


Submit = Callable[[Any], dict[str, Any]]


@pytest.fixture
def try_out(runs: Resource, namespace: str) -> Submit:
    """Give a manifest to the API server as `kubectl apply --dry-run=server` does; the object it would keep."""

    def submit(manifest: Any) -> dict[str, Any]:
        answer = runs.create(
            body=manifest, namespace=namespace, dry_run="All", query_params=[("fieldValidation", "Strict")]
        )
        kept: dict[str, Any] = answer.to_dict()
        return kept

    return submit
