"""The rig as pytest fixtures; `conftest.py` takes them in by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.api_server import Cluster, running_api_server
from rig.kuberay import install_kuberay_definitions, running_kuberay

CRD = Path(__file__).parents[3] / "crds" / "ireko.dev_compressionruns.yaml"


@pytest.fixture(scope="session")
def bare_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real API server with controllers and no definitions; one for the whole session."""
    with running_api_server(tmp_path_factory.mktemp("api-server")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def api_server(bare_api_server: Cluster) -> Cluster:
    """The session's API server, knowing CompressionRun and the kinds of KubeRay."""
    bare_api_server.install_definitions(CRD)
    install_kuberay_definitions(bare_api_server)
    return bare_api_server


@pytest.fixture
def namespace(api_server: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with api_server.namespace() as name:
        yield name


@pytest.fixture
def kuberay(api_server: Cluster, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """KubeRay's real operator, following the test's namespace; its log file."""
    with running_kuberay(api_server, tmp_path / "kuberay.log", namespace=namespace) as operator:
        yield operator.log
