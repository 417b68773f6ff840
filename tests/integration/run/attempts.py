"""Attempts of the trainer on the tiny case, as a launcher starts them, without a launcher."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from tiny import NAME, PATIENCE_SECONDS

from ireko_api.handoff import FAMILY_ARTIFACT, TAG_UID, Failure, Family, RunRequest, failure_in
from ireko_api.spec import CompressionRunSpec

_UID = "11111111-2222-3333-4444-555555555555"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """An attempt that has ended."""

    exit_status: int
    output: str

    @property
    def failure(self) -> Failure | None:
        """What the last line says."""
        return failure_in(self.output.splitlines()[-1])


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """All attempts of one run."""

    directory: Path
    """For the request, and for a disk of each machine."""
    inputs: Path
    storage: str
    tracking_uri: str
    environment: Mapping[str, str]

    @classmethod
    def begin(
        cls,
        directory: Path,
        *,
        inputs: Path,
        storage: str,
        database: Path,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Attempts:
        """A run that nobody has tried yet, with an MLflow database of its own."""
        directory.mkdir()
        shutil.copyfile(database, directory / "mlflow.db")
        return cls(
            directory=directory,
            inputs=inputs,
            storage=storage,
            tracking_uri=f"sqlite:///{directory / 'mlflow.db'}",
            environment=environment,
        )

    def write_request(self, spec: Mapping[str, Any], *, attempt: int = 1) -> Path:
        """What the operator hands over, as the file that every machine sees."""
        request = RunRequest(
            name=NAME,
            uid=_UID,
            spec_digest="d" * 64,
            spec=CompressionRunSpec.model_validate(spec),
            base_dir=str(self.inputs),
            storage=self.storage,
            tracking_uri=self.tracking_uri,
            artifact_location=str(self.directory / "artifacts") if "sqlite" in self.tracking_uri else None,
            attempt=attempt,
        )
        path = self.directory / "request.json"
        path.write_text(request.to_json())
        return path

    @contextlib.contextmanager
    def running(self, request: Path, *, machine: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """The trainer at work on a machine; killed if the test does not see it end."""
        disk = self.directory / machine
        disk.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "ireko_trainer", str(request)],
            env={**os.environ, **self.environment, "TMPDIR": str(disk), **environment},
            stdout=subprocess.PIPE,
            stderr=(disk / "trainer.log").open("a"),
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def run(self, request: Path, *, machine: str, **environment: str) -> Ended:
        """An attempt from its beginning to its end."""
        with self.running(request, machine=machine, **environment) as process:
            return end_of(process)

    def log_tail(self, machine: str) -> str:
        """The end of what the trainer wrote on a machine, for the message of a failed test."""
        return (self.directory / machine / "trainer.log").read_text()[-4000:]

    def steps(self, stage: str, *, machine: str) -> int:
        """Steps of an unfinished stage that are recorded on the disk of a machine."""
        return steps_on(self.directory / machine, stage)

    def bundles(self) -> dict[str, str]:
        """Device target → digest of the model that was handed over for it."""
        return {member.target: member.bundle_sha256 for member in self.family().members}

    def family(self) -> Family:
        """What the run handed over in MLflow."""
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking_uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        (run,) = client.search_runs(experiments, f"tags.`{TAG_UID}` = '{_UID}'")
        assert run.info.status == "FINISHED"
        with TemporaryDirectory() as folder:
            file = client.download_artifacts(run.info.run_id, FAMILY_ARTIFACT, folder)
            return Family.model_validate_json(Path(file).read_text())


def steps_on(disk: Path, stage: str) -> int:
    """Steps of an unfinished stage that are recorded anywhere on a disk."""
    journals = disk.glob(f"ireko-*/*/*/stages/{stage}-*.partial/metrics.jsonl")
    return sum(len(journal.read_text().splitlines()) for journal in journals)


def end_of(process: subprocess.Popen[str]) -> Ended:
    """Wait for an attempt to end."""
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return Ended(exit_status=process.returncode, output=output)
