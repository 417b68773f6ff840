"""A real `mlflow server` on a loopback port that can be stopped and started."""

from __future__ import annotations

import os
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from rig.processes import Process, free_port, wait_until


@dataclass(kw_only=True)
class MlflowServer:
    """The server of the database and the artifacts in a directory."""

    directory: Path
    port: int = field(default_factory=free_port)
    process: Process | None = None

    @property
    def uri(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = Process(
            name="mlflow",
            command=[
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                *("--backend-store-uri", f"sqlite:///{self.directory / 'mlflow.db'}", "--workers", "1"),
                *("--artifacts-destination", str(self.directory / "served"), "--serve-artifacts"),
            ],
            log=self.directory / "mlflow.log",
            environment={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )
        wait_until(self._healthy, what="MLflow to answer", timeout=120, watched=[self.process])

    def stop(self) -> None:
        """Kill it with everything it started."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
