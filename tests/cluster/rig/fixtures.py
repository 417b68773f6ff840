"""The rig as pytest fixtures; `conftest.py` takes them in by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rig.api_server import Cluster, running_api_server
from rig.cluster import NodeCluster, running_cluster
from rig.errors import UnavailableError
from rig.kuberay import install_kuberay, install_kuberay_definitions, running_kuberay
from rig.mlflow import install_mlflow

CRD = Path(__file__).parents[3] / "crds" / "ireko.dev_compressionruns.yaml"


@contextmanager
def skipping(tier: str) -> Iterator[None]:
    """Skip with one sentence what this machine cannot run."""
    try:
        yield
    except UnavailableError as reason:
        pytest.skip(f"{tier} not run: {reason}")


@pytest.fixture(scope="session")
def bare_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real API server with controllers and no definitions; one for the whole session."""
    with skipping("API tier"), running_api_server(tmp_path_factory.mktemp("api-server")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def api_server(bare_api_server: Cluster) -> Cluster:
    """The session's API server, knowing CompressionRun and the kinds of KubeRay."""
    bare_api_server.install_definitions(CRD)
    with skipping("API tier"):
        install_kuberay_definitions(bare_api_server)
    return bare_api_server


@pytest.fixture
def namespace(api_server: Cluster) -> Iterator[str]:
    """A namespace of the test's own, on the API tier."""
    with api_server.namespace() as name:
        yield name


@pytest.fixture
def kuberay(api_server: Cluster, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """KubeRay's real operator, following the test's namespace on the API tier; its log file."""
    with running_kuberay(api_server, tmp_path / "kuberay.log", namespace=namespace) as operator:
        yield operator.log


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    """Two real nodes and nothing on them; one cluster for the whole session."""
    with skipping("node tier"), running_cluster(tmp_path_factory.mktemp("cluster"), nodes=2) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def ray_cluster(cluster: NodeCluster) -> NodeCluster:
    """The session's nodes, with KubeRay's operator and an MLflow server as pods."""
    install_kuberay(cluster)
    install_mlflow(cluster)
    return cluster


@pytest.fixture
def pod_namespace(cluster: NodeCluster) -> Iterator[str]:
    """A namespace of the test's own, on the nodes."""
    with cluster.namespace() as name:
        yield name
