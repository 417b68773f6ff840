"""The same function on every worker of a training run, wherever the workers are."""

from ireko_trainer.distributed.cluster import in_cluster
from ireko_trainer.distributed.lost import WorkersLostError
from ireko_trainer.distributed.workers import WorkerResources, run_on_workers
from ireko_trainer.distributed.world import World

__all__ = ["WorkerResources", "WorkersLostError", "World", "in_cluster", "run_on_workers"]
