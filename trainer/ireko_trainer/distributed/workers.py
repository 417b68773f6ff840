"""Ray Train, as far as Ireko needs it: start the same function on every worker and give it a `World`.

Checkpoints are the stages' own (`pipeline.store`), so that a worker group that Ray restarts, a new attempt on a new
cluster and a laptop all resume the same way.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ireko_trainer.delta import Spread, one_by_one
from ireko_trainer.distributed.cluster import in_cluster, process_group, ray_cluster
from ireko_trainer.distributed.lost import WorkersLostError, last_line, out_of_memory
from ireko_trainer.distributed.tasks import RayTasks
from ireko_trainer.distributed.world import World


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """What one training worker gets."""

    cpus: float
    gpus: float
    memory_bytes: int | None
    threads: int


Work = Callable[[str, World], None]
"""A function of the request file and the world, defined at a module's top level: it is pickled by reference."""


def run_on_workers(
    work: Work,
    *,
    request_file: Path,
    workers: int,
    resources: WorkerResources,
    max_failures: int,
    storage: Path,
    name: str,
) -> None:
    """Run `work` on every worker of a Ray Train group and wait for all of them.

    `workers=0` runs it in this process. `storage` is for Ray's own notes, which nobody needs afterwards. Raises
    WorkersLostError when the group failed more than `max_failures` times, OutOfMemoryError when Ray ended a
    part of it for want of memory.
    """
    if workers == 0:
        torch.set_num_threads(resources.threads)
        work(str(request_file), World(device=_local_device(gpus=resources.gpus)))
        return
    with ray_cluster(cpus=workers * resources.cpus, gpus=workers * resources.gpus):
        import ray.exceptions
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "work": work,
                "request_file": str(request_file),
                "threads": resources.threads,
                "at_once": int(workers * resources.cpus // resources.threads),
                "log_directory": None if in_cluster() else str(storage),
            },
            torch_config=process_group(),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker=_ray_resources(resources),
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(
                name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=max_failures)
            ),
        )
        try:
            trainer.fit()
        except ray.exceptions.OutOfMemoryError as error:
            raise out_of_memory(error) from error
        except TrainingFailedError as error:
            failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
            for failure in failures:
                if isinstance(failure, ray.exceptions.OutOfMemoryError):
                    raise out_of_memory(failure) from error
            raise WorkersLostError(
                f"the training workers failed {max_failures + 1} times; the last time: {last_line(error)}. "
                "Everything up to the last checkpoint is kept: run the same command again to go on"
            ) from error


def _worker(config: dict[str, object]) -> None:
    import ray.train

    threads, work, request_file = config["threads"], config["work"], config["request_file"]
    assert isinstance(threads, int)
    assert callable(work)
    torch.set_num_threads(threads)
    context = ray.train.get_context()
    _log(config["log_directory"], rank=context.get_world_rank())
    device = ray.train.torch.get_device()
    work(
        request_file,
        World(
            rank=context.get_world_rank(),
            size=context.get_world_size(),
            device=device,
            spread=_spread(config["at_once"], device=device),
        ),
    )


def _spread(at_once: object, *, device: torch.device) -> Spread:
    """Tasks where more than one has room; on a GPU one process is faster than what its machines' CPUs can do."""
    assert isinstance(at_once, int)
    return RayTasks(at_once=at_once) if at_once > 1 and device.type == "cpu" else one_by_one


def _log(directory: object, *, rank: int) -> None:
    """To a file of the worker's own, or, on a cluster, to where Ray collects the output of all workers."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if directory is not None:
        handler = logging.FileHandler(Path(str(directory)) / f"worker-{rank}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("ireko_trainer").addHandler(handler)
    logging.getLogger("ireko_trainer").setLevel(logging.INFO)


def _ray_resources(resources: WorkerResources) -> dict[str, float]:
    wanted: dict[str, float] = {"CPU": resources.cpus}
    if resources.gpus:
        wanted["GPU"] = resources.gpus
    if resources.memory_bytes is not None and not in_cluster():
        # On a cluster a worker has a machine of its own, whose limit is not Ray's to watch.
        wanted["memory"] = float(resources.memory_bytes)
    return wanted


def _local_device(*, gpus: float) -> torch.device:
    return torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
