"""Ray Train, as far as Ireko needs it: start the same function on every worker and give it a `World`.

The algorithms know no Ray. They average gradients through `World.all_reduce` and wait for each other through
`World.barrier`; with one worker both do nothing. Checkpoints are the stages' own (`pipeline.store`), so that a
worker group that Ray restarts, a new attempt on a new cluster and a laptop all resume the same way.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from ireko_trainer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class World:
    """The workers of one training run, as seen by one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the workers, in place, with one collective call."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any worker; all workers get the same answer."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.size > 1:
            dist.barrier()


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """What one training worker gets."""

    cpus: float
    gpus: float
    memory_bytes: int | None
    threads: int


class WorkersLostError(UserError):
    """Workers died more often than the manifest allows."""

    reason = "WorkerLost"


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

    `workers=0` runs it in this process. Raises WorkersLostError when the group failed more than `max_failures` times.
    """
    torch.set_num_threads(resources.threads)
    if workers == 0:
        work(str(request_file), World(device=_local_device(gpus=resources.gpus)))
        return
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    with _own_signal_handlers():
        _start_ray(cpus=workers * resources.cpus, gpus=workers * resources.gpus)
    try:
        TorchTrainer(
            _worker,
            train_loop_config={
                "work": work,
                "request_file": str(request_file),
                "threads": resources.threads,
                "log_directory": str(storage),
            },
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker=_ray_resources(resources),
            ),
            run_config=RunConfig(
                name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=max_failures)
            ),
        ).fit()
    except TrainingFailedError as error:
        raise WorkersLostError(
            f"the training workers failed {max_failures + 1} times; the last time: {_last_line(error)}. Everything "
            "up to the last checkpoint is kept: run the same command again to go on"
        ) from error
    finally:
        # Ray's controller actors outlive a driver that goes without a word.
        ray.shutdown()


def _worker(config: dict[str, object]) -> None:
    import ray.train

    threads, work, request_file = config["threads"], config["work"], config["request_file"]
    assert isinstance(threads, int)
    assert callable(work)
    torch.set_num_threads(threads)
    context = ray.train.get_context()
    _log_to_file(Path(str(config["log_directory"])) / f"worker-{context.get_world_rank()}.log")
    device = ray.train.torch.get_device()
    work(request_file, World(rank=context.get_world_rank(), size=context.get_world_size(), device=device))


def _log_to_file(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("ireko_trainer").addHandler(handler)
    logging.getLogger("ireko_trainer").setLevel(logging.INFO)


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put the process's handlers back afterwards: Ray aborts the driver at SIGTERM, before anything is saved."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start_ray(*, cpus: float, gpus: float) -> None:
    import ray

    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", log_to_driver=True)
        return
    available = os.cpu_count() or 1
    if cpus > available:
        raise UserError(
            f"spec.compute: the workers ask for {cpus:g} CPUs and this machine has {available}; "
            "lower workers or resourcesPerWorker.cpu"
        )
    if gpus > torch.cuda.device_count():
        raise UserError(
            f"spec.compute: the workers ask for {gpus:g} GPUs and this machine has {torch.cuda.device_count()}; "
            "lower workers or resourcesPerWorker.gpu"
        )
    # Without a dashboard Ray Train's helpers complain once a second; workers keep logs of their own.
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


def _ray_resources(resources: WorkerResources) -> dict[str, float]:
    wanted: dict[str, float] = {"CPU": resources.cpus}
    if resources.gpus:
        wanted["GPU"] = resources.gpus
    if resources.memory_bytes is not None:
        wanted["memory"] = float(resources.memory_bytes)
    return wanted


def _local_device(*, gpus: float) -> torch.device:
    return torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
