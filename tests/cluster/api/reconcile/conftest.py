"""Worlds to reconcile in: a real API server, MLflow on a real database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ireko_operator.kube.client import connect
from play.mlflow_server import MlflowServer
from play.world import World
from rig.api_server import Cluster


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database: copying it takes no time, migrating does."""
    from mlflow import MlflowClient

    template = tmp_path_factory.mktemp("mlflow-template") / "mlflow.db"
    MlflowClient(f"sqlite:///{template}").search_experiments()
    return template


@pytest.fixture
def tracking_uri(migrated_database: Path, tmp_path: Path) -> str:
    shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def mlflow_server(
    migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowServer]:
    """A running MLflow server of the test's own; its client does not repeat what fails."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    server = MlflowServer(directory=tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def served_world(
    api_server: Cluster, namespace: str, mlflow_server: MlflowServer, tmp_path: Path
) -> Iterator[World]:
    """The same as `world`, with MLflow behind HTTP."""
    made = World(
        api=connect(kubeconfig=api_server.kubeconfig),
        hands=connect(kubeconfig=api_server.kubeconfig),
        namespace=namespace,
        tracking_uri=mlflow_server.uri,
        directory=tmp_path,
    )
    yield made
    made.close()


@pytest.fixture
def world(api_server: Cluster, namespace: str, tracking_uri: str, tmp_path: Path) -> Iterator[World]:
    """A namespace that an operator looks after."""
    made = World(
        api=connect(kubeconfig=api_server.kubeconfig),
        hands=connect(kubeconfig=api_server.kubeconfig),
        namespace=namespace,
        tracking_uri=tracking_uri,
        directory=tmp_path,
    )
    yield made
    made.close()
