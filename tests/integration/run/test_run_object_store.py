"""A run whose storage is an object store: every attempt on an empty machine, and the same bytes in the end."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attempts import Attempts, end_of
from object_store import BUCKET, ObjectServer
from tiny import DEPTHS_STEPS, TEACHER_STEPS, specification, wait_until

PREFIX = "runs/tiny"
LONG = 200
"""Steps of a stage in which much happens."""


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.start()
    server.client.create_bucket(Bucket=BUCKET)
    yield server
    server.stop()


def test_attempts_on_machines_that_share_an_object_store_end_as_one_on_a_disk(
    server: ObjectServer, tiny_inputs: Path, migrated_mlflow_db: Path, tmp_path: Path
) -> None:
    """Stopped in training, killed a little later, and then left alone: each time on an empty machine."""
    remote = Attempts.begin(
        tmp_path / "remote",
        storage=f"s3://{BUCKET}/{PREFIX}",
        inputs=tiny_inputs,
        database=migrated_mlflow_db,
        environment=server.environment,
    )
    spec = specification()
    spec["pipeline"]["mlfs"]["stages"]["widths"]["steps"] = LONG

    def reached(step: int, *, machine: str) -> Callable[[], bool]:
        return lambda: remote.steps("widths", machine=machine) >= step

    with remote.running(remote.write_request(spec, attempt=1), machine="first") as process:
        assert wait_until(reached(5, machine="first"), process=process), remote.log_tail("first")
        process.terminate()
        stopped = end_of(process)
    kept = remote.steps("widths", machine="first")
    with remote.running(remote.write_request(spec, attempt=2), machine="second") as process:
        assert wait_until(reached(kept + 3, machine="second"), process=process), remote.log_tail("second")
        os.killpg(process.pid, signal.SIGKILL)
    last = remote.run(remote.write_request(spec, attempt=3), machine="third")

    assert stopped.exit_status == 3, remote.log_tail("first")
    assert stopped.failure is not None
    assert stopped.failure.reason == "Interrupted"
    assert stopped.failure.message.startswith(f"stage widths stopped after {kept} of")
    assert last.exit_status == 0, remote.log_tail("third")
    assert "IREKO_FAILURE" not in last.output
    assert not [key for key in server.keys(f"{PREFIX}/stages/") if key.endswith("at-work.json")]
    assert_every_step_once(remote)
    local = Attempts.begin(
        tmp_path / "local",
        storage=str(tmp_path / "local" / "storage"),
        inputs=tiny_inputs,
        database=migrated_mlflow_db,
        environment=server.environment,
    )
    assert local.run(local.write_request(spec), machine="disk").exit_status == 0, local.log_tail("disk")
    assert remote.bundles() == local.bundles()


def assert_every_step_once(run: Attempts) -> None:
    """What a machine lost was not told to MLflow, and what was told is not told again."""
    from mlflow import MlflowClient

    client = MlflowClient(run.tracking_uri)
    nested = {
        stage.info.run_name: stage.info.run_id
        for stage in client.search_runs([client.get_run(run.family().run_id).info.experiment_id])
    }
    for stage, steps in {"teacher": TEACHER_STEPS, "widths": LONG, "depths": DEPTHS_STEPS}.items():
        history = client.get_metric_history(nested[stage], "loss")
        assert Counter(reading.step for reading in history) == Counter(range(1, steps + 1)), stage


def test_a_store_that_refuses_is_named_in_the_last_line_before_anything_is_done(
    server: ObjectServer, tiny_inputs: Path, migrated_mlflow_db: Path, tmp_path: Path
) -> None:
    run = Attempts.begin(
        tmp_path / "refused",
        storage="s3://nowhere/tiny",
        inputs=tiny_inputs,
        database=migrated_mlflow_db,
        environment=server.environment,
    )

    ended = run.run(run.write_request(specification()), machine="one")

    assert ended.exit_status == 1
    assert ended.failure is not None
    assert ended.failure.reason == "StorageNotWritable"
    assert ended.failure.message.startswith("spec.compute.storage.objectStore.uri: s3://nowhere/tiny")
    assert ended.failure.resumable
