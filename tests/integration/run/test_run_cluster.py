"""A run on a Ray cluster of several nodes that share nothing but an object store, as KubeRay would start it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from attempts import Attempts, steps_on
from object_store import BUCKET, ObjectServer
from ray_nodes import RayNodes
from tiny import finish, specification, wait_until

from ireko_api.handoff import failure_in
from ireko_trainer.distributed import World
from ireko_trainer.pipeline.family import train_family

PREFIX = "runs/cluster"
PATIENCE = 900.0
"""Seven processes import Torch and Ray, some of them more than once."""


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.start()
    server.client.create_bucket(Bucket=BUCKET)
    yield server
    server.stop()


@pytest.fixture
def nodes(server: ObjectServer, tmp_path: Path) -> Iterator[RayNodes]:
    nodes = RayNodes.start(
        tmp_path, environment={**server.environment, "OMP_NUM_THREADS": "1"}, workers=["first", "second"]
    )
    yield nodes
    nodes.stop()


def spec_of(*, workers: int) -> dict[str, Any]:
    spec = specification()
    # Long enough that a checkpoint falls into it.
    spec["pipeline"]["mlfs"]["stages"]["widths"]["steps"] = 200
    spec["compute"] = {"workers": workers, "resourcesPerWorker": {"cpu": "1"}, "maxWorkerFailures": 1}
    return spec


def test_a_stopped_job_and_a_lost_node_change_no_byte(
    nodes: RayNodes, server: ObjectServer, tiny_inputs: Path, migrated_mlflow_db: Path, tmp_path: Path
) -> None:
    run = Attempts.begin(
        tmp_path / "run", storage=f"s3://{BUCKET}/{PREFIX}", inputs=tiny_inputs, database=migrated_mlflow_db
    )

    def training(stage: str) -> bool:
        return any(steps_on(disk, stage) > 2 for disk in (tmp_path / "first", tmp_path / "second"))

    def kept(stage: str) -> bool:
        return any("at-work" in key for key in server.keys(f"{PREFIX}/stages/{stage}-"))

    def submit(number: int) -> Any:
        request = run.write_request(spec_of(workers=2), attempt=number)
        return nodes.submit(f"attempt-{number}", sys.executable, "-m", "ireko_trainer", str(request))

    stopped = submit(1)
    assert wait_until(lambda: training("teacher"), process=stopped, seconds=0.5, patience=PATIENCE), (
        nodes.logs("attempt-1")
    )
    nodes.stop_job("attempt-1")
    finish(stopped, patience=PATIENCE)
    failure = failure_in(nodes.logs("attempt-1"))

    resumed = submit(2)
    assert wait_until(lambda: kept("widths"), process=resumed, seconds=0.5, patience=PATIENCE), nodes.logs(
        "attempt-2"
    )
    nodes.kill("first")
    nodes.add("replacement")
    ended = finish(resumed, patience=PATIENCE)

    assert failure is not None, nodes.logs("attempt-1")
    assert failure.reason == "Interrupted"
    assert failure.resumable
    assert ended.exit_status == 0, ended.stdout
    assert failure_in(ended.stdout) is None
    assert run.bundles() == undisturbed_bundles(tmp_path, tiny_inputs, migrated_mlflow_db)


# --- the same arithmetic without Ray ----------------------------------------------------------------------


def undisturbed_bundles(directory: Path, inputs: Path, database: Path) -> dict[str, str]:
    """What two workers and a driver come to when nothing happens to them."""
    run = Attempts.begin(
        directory / "undisturbed",
        storage=str(directory / "undisturbed" / "storage"),
        inputs=inputs,
        database=database,
    )
    request = run.write_request(spec_of(workers=2))
    multiprocessing.spawn(_train, args=(str(request), str(run.directory)), nprocs=2)
    ended = run.run(run.write_request(spec_of(workers=0)), machine="disk")
    assert ended.exit_status == 0, run.log_tail("disk")
    return run.bundles()


def _train(rank: int, request_file: str, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    train_family(request_file, World(rank=rank, size=2))
    dist.destroy_process_group()
