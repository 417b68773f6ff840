"""One attempt at a run, from the request to the family in MLflow, and its one exit code."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import torch

from ireko_api.handoff import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SUCCEEDED,
    FAILURE_FILE,
    Failure,
    RunRequest,
)
from ireko_api.spec import CompressionRunSpec, Compute
from ireko_trainer.distributed import WorkerResources, WorkersLostError, World, in_cluster, run_on_workers
from ireko_trainer.errors import InterruptedRunError, UserError
from ireko_trainer.pipeline.family import Trained, failure_of, read_failure, train_family, write_failure
from ireko_trainer.pipeline.files import explained_full_disk
from ireko_trainer.pipeline.inputs import load_inputs
from ireko_trainer.pipeline.memory import MemoryCheck, load_checked
from ireko_trainer.pipeline.shipping import ship
from ireko_trainer.pipeline.stop import StopFlag, raise_on_signals, raise_when_orphaned
from ireko_trainer.pipeline.storage import Storage, open_storage
from ireko_trainer.tracking.runs import FamilyRun

PARENT_PID_VARIABLE = "IREKO_PARENT_PID"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Ray paints the names of actors, also where nobody sees colours."""

log = logging.getLogger(__name__)


class ReportedFailureError(Exception):
    """The training workers wrote a failure instead of a family."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def run(request_file: Path) -> int:
    """Execute a request; returns one of the exit codes of `ireko_api.handoff`.

    The last line of output of a run that failed is the failure, for whoever sees neither MLflow nor the storage.
    """
    failure = _attempt(request_file)
    if failure is None:
        return EXIT_SUCCEEDED
    log.error("%s: %s", failure.reason, failure.message)
    print(failure.to_line(), flush=True)
    return EXIT_INTERRUPTED if failure.reason == "Interrupted" else EXIT_FAILED


def _attempt(request_file: Path) -> Failure | None:
    storage: Storage | None = None
    family: FamilyRun | None = None
    try:
        request = RunRequest.model_validate_json(request_file.read_text())
        storage = _prepared(request.storage)
        stop = _listen_for_stop(storage)
        family = FamilyRun.open(request)
        with explained_full_disk(storage.directory):
            _compress(request, request_file=request_file, storage=storage, family=family, stop=stop)
    except ReportedFailureError as error:
        failure = error.failure
    except (UserError, InterruptedRunError) as error:
        failure = failure_of(error)
    except Exception as error:  # whatever it is, the user must learn of it in a sentence
        log.exception("the trainer failed")
        failure = _internal(error)
    else:
        return None
    _tell(failure, storage=storage, family=family)
    return failure


def _prepared(uri: str) -> Storage:
    storage = open_storage(uri)
    storage.require_writable()
    storage.remove(FAILURE_FILE)
    return storage


def _listen_for_stop(storage: Storage) -> StopFlag:
    stop = StopFlag(storage=storage)
    stop.clear()
    raise_on_signals(stop)
    parent = os.environ.get(PARENT_PID_VARIABLE)
    if parent:
        raise_when_orphaned(stop, parent=int(parent))
    return stop


def _compress(
    request: RunRequest, *, request_file: Path, storage: Storage, family: FamilyRun, stop: StopFlag
) -> None:
    torch.set_num_threads(_own_threads(request.spec))
    inputs = None
    if not in_cluster():
        # A mistake in the manifest is told before workers are started. On a cluster they are waiting already.
        check = MemoryCheck.of_driver(request.spec)
        inputs = load_checked(request, cache=storage.cache, check=check, family=family)
        inputs.forget_weights()
    _train(request, request_file=request_file, storage=storage)
    if inputs is None:
        inputs = load_inputs(request, cache=storage.cache)
        inputs.forget_weights()
    ship(
        request,
        inputs=inputs,
        trained=Trained.read(storage),
        family=family,
        stop=stop,
        storage=storage,
    )


def _train(request: RunRequest, *, request_file: Path, storage: Storage) -> None:
    """Train on the workers, or here where there are none; a failure that they wrote is raised."""
    compute = request.spec.compute
    try:
        if not request.spec.trains:
            train_family(str(request_file), World())
        else:
            run_on_workers(
                train_family,
                request_file=request_file,
                workers=compute.workers,
                resources=_resources(compute),
                max_failures=compute.max_worker_failures,
                storage=storage.directory / "ray",
                name=f"{request.name}-{request.attempt}-{os.getpid()}",
            )
    except WorkersLostError as error:
        # The worker that went last may have said why.
        raise ReportedFailureError(read_failure(storage) or failure_of(error)) from error
    failure = read_failure(storage)
    if failure is not None:
        raise ReportedFailureError(failure)


def _own_threads(spec: CompressionRunSpec) -> int:
    """As many as a worker has, but where the workers have machines of their own."""
    if in_cluster() and spec.training_workers:
        return max(1, int(spec.compute.head.resources.cpus))
    return _resources(spec.compute).threads


def _resources(compute: Compute) -> WorkerResources:
    each = compute.resources_per_worker
    return WorkerResources(
        cpus=each.cpus,
        gpus=float(each.gpu),
        memory_bytes=each.memory_bytes,
        threads=compute.threads_per_worker or max(1, int(each.cpus)),
    )


def _internal(error: Exception) -> Failure:
    first = _COLOURS.sub("", str(error)).strip().splitlines()[:1] or [""]
    return Failure(
        reason="Internal",
        message=(
            f"a defect of Ireko stopped the run: {type(error).__name__}: {first[0][:300]}. The traceback is in the "
            "trainer's log; nothing that was finished is lost, and the same command goes on from there"
        ),
        resumable=False,
    )


def _tell(failure: Failure, *, storage: Storage | None, family: FamilyRun | None) -> None:
    """Leave the failure in the storage and in MLflow, as far as they can be reached."""
    if storage is not None:
        try:
            write_failure(storage, failure)
        except (UserError, OSError) as error:
            # What stopped the run may stop this too; MLflow and the log are told in any case.
            log.warning("the failure could not be written down: %s", error)
    if family is not None:
        family.fail(failure)
