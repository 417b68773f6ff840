"""Ray's memory monitor ends a part of the training: the user learns how full it was and what to raise."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import ray.train.torch
from ray.train.v2.api.exceptions import WorkerGroupError

from ireko_trainer.distributed import WorkerResources, workers
from ireko_trainer.distributed.lost import OutOfMemoryError, WorkersLostError
from ireko_trainer.distributed.workers import run_on_workers

KILLED = "1 worker(s) were killed: memory on the node (IP: 10.0.0.1) was 1.90GB used / 2.00GB limit (0.95)."


def fit_that_ends_in(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        def __init__(self, *_: Any, **__: Any) -> None:
            """Takes what Ray's takes."""

        def fit(self) -> None:
            raise error

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(workers, "ray_cluster", lambda **_: nullcontext())


def run(storage: Path) -> None:
    run_on_workers(
        lambda _request, _world: None,
        request_file=storage / "request.json",
        workers=1,
        resources=WorkerResources(cpus=1, gpus=0, memory_bytes=None, threads=1),
        max_failures=1,
        storage=storage,
        name="run",
    )


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.OutOfMemoryError(KILLED),
        WorkerGroupError("failed", {0: ray.exceptions.OutOfMemoryError(KILLED)}),
    ],
    ids=["of the controller", "of a worker"],
)
def test_an_end_for_want_of_memory_says_how_full_it_was_and_what_to_raise(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fit_that_ends_in(error, monkeypatch)
    with pytest.raises(
        OutOfMemoryError, match=r"1\.90GB used / 2\.00GB limit.*head\.resources\.memory"
    ) as told:
        run(tmp_path)
    assert told.value.reason == "OutOfMemory"


def test_any_other_end_of_a_worker_is_a_lost_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fit_that_ends_in(WorkerGroupError("failed", {0: RuntimeError("gone")}), monkeypatch)
    with pytest.raises(WorkersLostError, match="failed 2 times"):
        run(tmp_path)
