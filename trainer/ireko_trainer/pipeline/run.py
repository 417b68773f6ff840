"""One attempt at a run, from the request to the family in MLflow, and its one exit code."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ireko_api.handoff import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SUCCEEDED,
    FAILURE_FILE,
    Failure,
    RunRequest,
)
from ireko_api.spec import Compute
from ireko_trainer.distributed import WorkerResources, World, run_on_workers
from ireko_trainer.errors import InterruptedRunError, UserError
from ireko_trainer.pipeline.family import Trained, failure_of, train_family, write_failure
from ireko_trainer.pipeline.inputs import load_inputs
from ireko_trainer.pipeline.shipping import ship
from ireko_trainer.pipeline.stop import StopFlag, raise_on_signals, raise_when_orphaned
from ireko_trainer.pipeline.store import explained_full_disk
from ireko_trainer.tracking.lineage import lineage_tags
from ireko_trainer.tracking.runs import FamilyRun

PARENT_PID_VARIABLE = "IREKO_PARENT_PID"

log = logging.getLogger(__name__)


class ReportedFailureError(Exception):
    """The training workers wrote a failure instead of a family."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def run(request_file: Path) -> int:
    """Execute a request; returns one of the exit codes of `ireko_api.handoff`."""
    request = RunRequest.model_validate_json(request_file.read_text())
    storage = Path(request.storage)
    storage.mkdir(parents=True, exist_ok=True)
    stop = _listen_for_stop(storage)
    (storage / FAILURE_FILE).unlink(missing_ok=True)
    family: FamilyRun | None = None
    try:
        family = FamilyRun.open(request)
        with explained_full_disk(storage):
            _compress(request, request_file=request_file, family=family, stop=stop)
    except ReportedFailureError as error:
        failure = error.failure
    except (UserError, InterruptedRunError) as error:
        failure = failure_of(error)
    except Exception as error:  # whatever it is, the user must learn of it in a sentence
        log.exception("the trainer failed")
        failure = _internal(error)
    else:
        return EXIT_SUCCEEDED
    return _end(failure, storage=storage, family=family)


def _listen_for_stop(storage: Path) -> StopFlag:
    stop = StopFlag(storage=storage)
    stop.clear()
    raise_on_signals(stop)
    parent = os.environ.get(PARENT_PID_VARIABLE)
    if parent:
        raise_when_orphaned(stop, parent=int(parent))
    return stop


def _compress(request: RunRequest, *, request_file: Path, family: FamilyRun, stop: StopFlag) -> None:
    inputs = load_inputs(request)
    family.set_tags(
        lineage_tags(
            seed=request.spec.seed, teacher_sha256=inputs.teacher.sha256, data_sha256=inputs.data_digests
        )
    )
    _train(request, request_file=request_file)
    ship(request, inputs=inputs, trained=Trained.read(Path(request.storage)), family=family, stop=stop)


def _train(request: RunRequest, *, request_file: Path) -> None:
    storage = Path(request.storage)
    compute = request.spec.compute
    resources = _resources(compute)
    if request.spec.pipeline.mlfs is None:
        train_family(str(request_file), World())
    else:
        run_on_workers(
            train_family,
            request_file=request_file,
            workers=compute.workers,
            resources=resources,
            max_failures=compute.max_worker_failures,
            storage=storage / "ray",
            name=f"{request.name}-{request.attempt}-{os.getpid()}",
        )
    failure_file = storage / FAILURE_FILE
    if failure_file.is_file():
        raise ReportedFailureError(Failure.model_validate_json(failure_file.read_text()))


def _resources(compute: Compute) -> WorkerResources:
    each = compute.resources_per_worker
    return WorkerResources(
        cpus=each.cpus,
        gpus=float(each.gpu),
        memory_bytes=each.memory_bytes,
        threads=compute.threads_per_worker or max(1, int(each.cpus)),
    )


def _internal(error: Exception) -> Failure:
    first = str(error).strip().splitlines()[:1] or [""]
    return Failure(
        reason="Internal",
        message=(
            f"a defect of Ireko stopped the run: {type(error).__name__}: {first[0][:300]}. The traceback is in the "
            "trainer's log; nothing that was finished is lost, and the same command goes on from there"
        ),
        resumable=False,
    )


def _end(failure: Failure, *, storage: Path, family: FamilyRun | None) -> int:
    log.error("%s: %s", failure.reason, failure.message)
    try:
        write_failure(storage, failure)
    except (UserError, OSError) as error:
        # What stopped the run may stop this too; MLflow and the log are told in any case.
        log.warning("the failure could not be written down: %s", error)
    if family is not None:
        family.fail(failure)
    return EXIT_INTERRUPTED if failure.reason == "Interrupted" else EXIT_FAILED
