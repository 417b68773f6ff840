"""`spec.compute` and `spec.registry`: what a run may use, and where its models are registered."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ireko_api.base import Integer, SpecModel, Text, text, trimmed
from ireko_api.quantity import Quantity, parse_quantity, to_bytes

_MODEL_NAME = text(
    pattern=r"^[^\s/:@]([^/:@]*[^\s/:@])?$",
    form="a name without slashes, colons, at signs and spaces around it",
    max_length=256,
)


class Resources(SpecModel):
    """What one worker may use."""

    cpu: Quantity = "1"
    """Processor cores, as a Kubernetes quantity, e.g. `2` or `500m`."""
    memory: Quantity = "2Gi"
    """Memory, as a Kubernetes quantity, e.g. `2Gi`."""
    gpu: Annotated[Integer, Field(ge=0, le=16)] = 0
    """Whole GPUs."""

    @property
    def cpus(self) -> float:
        """Cores as a number."""
        return float(parse_quantity(self.cpu))

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return to_bytes(self.memory)


class Compute(SpecModel):
    """What the training may use."""

    workers: Annotated[Integer, Field(ge=0, le=1024)] = 1
    """Data-parallel training workers, each a process of its own. 0 trains in the trainer's own process, which
    starts fastest and suits a laptop."""
    resources_per_worker: Resources = Resources()
    """What each worker may use."""
    threads_per_worker: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    """Threads that one worker computes with. Without it as many as `resourcesPerWorker.cpu`, rounded up."""
    max_worker_failures: Annotated[Integer, Field(ge=0, le=100)] = 1
    """How often lost workers are replaced within one attempt before the attempt fails. Training goes on from
    the last checkpoint."""


class Registry(SpecModel):
    """Where runs are tracked and models registered: an MLflow server or a local MLflow database."""

    tracking_uri: Annotated[Text, trimmed(max_length=1024)] | None = None
    """URI of the MLflow tracking server, e.g. `http://mlflow:5000`. Without it the one that the operator is
    configured with; on a laptop a database in the state directory. Never write a password here."""
    experiment: Annotated[Text, trimmed(max_length=256)] = "ireko"
    """Name of the MLflow experiment, made when absent."""
    model_name: Annotated[Text, _MODEL_NAME] | None = None
    """Name of the registered model whose versions the members become; no slash, colon or at sign. Without it the name
    of the run."""
