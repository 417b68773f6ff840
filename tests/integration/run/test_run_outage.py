"""MLflow is away for a while: training goes on, and what was to be logged is logged when it is back."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Protocol

from attempts import Attempts, end_of
from mlflow import MlflowClient
from tiny import DEPTHS_STEPS, TARGETS, WIDTHS_STEPS, specification, wait_until


class Server(Protocol):
    """What the fixture `mlflow_server` gives."""

    uri: str

    def start(self) -> None: ...

    def stop(self) -> None: ...


def test_an_outage_in_training_delays_the_run_and_loses_nothing(
    mlflow_server: Server, tiny_inputs: Path, tmp_path: Path
) -> None:
    run = Attempts(
        directory=tmp_path,
        inputs=tiny_inputs,
        storage=str(tmp_path / "storage"),
        tracking_uri=mlflow_server.uri,
        environment={},
    )
    log = tmp_path / "disk" / "trainer.log"

    with run.running(run.write_request(specification()), machine="disk") as process:
        assert wait_until(
            lambda: any((tmp_path / "storage" / "stages").glob("widths-*.partial")), process=process
        ), run.log_tail("disk")
        mlflow_server.stop()
        # The stage is trained to its end in the outage; only then is MLflow missed.
        assert wait_until(lambda: "trying again in 4.0 s" in log.read_text(), process=process, seconds=0.2)
        assert process.poll() is None
        mlflow_server.start()
        ended = end_of(process)

    assert ended.exit_status == 0, run.log_tail("disk")
    assert {member.target for member in run.family().members} == set(TARGETS)
    client = MlflowClient(mlflow_server.uri)
    nested = {
        stage.info.run_name: stage
        for stage in client.search_runs([client.get_run(run.family().run_id).info.experiment_id])
        if stage.data.tags.get("mlflow.parentRunId") == run.family().run_id
    }
    assert {stage.info.status for stage in nested.values()} == {"FINISHED"}
    for stage, steps in {"widths": WIDTHS_STEPS, "depths": DEPTHS_STEPS}.items():
        history = client.get_metric_history(nested[stage].info.run_id, "loss")
        assert Counter(reading.step for reading in history) == Counter(range(1, steps + 1)), stage


def test_the_hook_of_a_pod_waits_until_the_trainer_has_saved(
    mlflow_sqlite_uri: str, tiny_inputs: Path, tmp_path: Path
) -> None:
    run = Attempts(
        directory=tmp_path,
        inputs=tiny_inputs,
        storage=str(tmp_path / "storage"),
        tracking_uri=mlflow_sqlite_uri,
        environment={},
    )
    request = run.write_request(specification())

    with run.running(request, machine="disk") as process:
        assert wait_until(
            lambda: any((tmp_path / "storage" / "stages").glob("teacher-*.partial/metrics.jsonl")),
            process=process,
        ), run.log_tail("disk")
        hook = subprocess.run([sys.executable, "-m", "ireko_trainer.stop", str(request)], check=False)
        # Nothing of the process but its last moment may be left.
        process.wait(timeout=5)
        ended = end_of(process)

    assert hook.returncode == 0
    assert ended.exit_status == 3, run.log_tail("disk")
    assert ended.failure is not None
    assert ended.failure.message.startswith("stage teacher stopped after")
    assert next((tmp_path / "storage" / "stages").glob("teacher-*.partial/state.pt")).is_file()
