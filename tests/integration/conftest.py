"""Real MLflow for the integration tests: SQLite databases that need no migration, and a server process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SERVER_START_SECONDS = 120.0


@pytest.fixture(scope="session")
def migrated_mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database: copy it, since the migration takes seconds and the copy does not."""
    from mlflow import MlflowClient

    template = tmp_path_factory.mktemp("mlflow-template") / "mlflow.db"
    MlflowClient(f"sqlite:///{template}").search_experiments()
    return template


@pytest.fixture
def mlflow_sqlite_uri(migrated_mlflow_db: Path, tmp_path: Path) -> str:
    """The tracking URI of a fresh SQLite database of this test."""
    database = tmp_path / "mlflow.db"
    shutil.copyfile(migrated_mlflow_db, database)
    return f"sqlite:///{database}"


@dataclass(kw_only=True)
class MlflowServer:
    """One `mlflow server` process on a fixed loopback port; it can be stopped and started."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.directory / 'mlflow.db'}", "--workers", "1"),
            *("--artifacts-destination", str(self.directory / "artifacts"), "--serve-artifacts"),
        ]
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + SERVER_START_SECONDS
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(
                    f"mlflow server did not start:\n{(self.directory / 'server.log').read_text()[-3000:]}"
                )
            time.sleep(0.2)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the server with everything it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def running_mlflow_server(
    migrated_mlflow_db: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    directory = tmp_path_factory.mktemp("mlflow-server")
    shutil.copyfile(migrated_mlflow_db, directory / "mlflow.db")
    server = MlflowServer(directory=directory, port=free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mlflow_server(running_mlflow_server: MlflowServer) -> MlflowServer:
    """The session's server, started again where an earlier test left it stopped."""
    if running_mlflow_server.process is None:
        running_mlflow_server.start()
    return running_mlflow_server
