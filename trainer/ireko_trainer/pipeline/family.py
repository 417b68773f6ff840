"""From a teacher to the checkpoints of a family: what every training worker runs, and what it leaves for the driver."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ireko_api.handoff import FAILURE_FILE, Failure, RunRequest
from ireko_trainer.distributed import World
from ireko_trainer.errors import DivergedError, InterruptedRunError, UserError
from ireko_trainer.mlfs import Palette, Shape, teacher_shape
from ireko_trainer.pipeline.deltas import check_delta, delta_stages
from ireko_trainer.pipeline.files import explained_full_disk, to_json
from ireko_trainer.pipeline.memory import MemoryCheck, load_checked
from ireko_trainer.pipeline.palette import palette_shapes, palette_stage, shape_entry
from ireko_trainer.pipeline.plan import meter_for
from ireko_trainer.pipeline.precision import training_precision
from ireko_trainer.pipeline.selection import Chosen, chosen, select_stage, weights_of
from ireko_trainer.pipeline.stage import Part, StageRunner
from ireko_trainer.pipeline.stop import StopFlag
from ireko_trainer.pipeline.storage import Storage, open_storage
from ireko_trainer.pipeline.store import FinishedStage, StageStore
from ireko_trainer.pipeline.training import (
    Training,
    member_stage,
    order_stage,
    supernet_stage,
    teacher_stage,
)
from ireko_trainer.tracking.lineage import lineage_tags
from ireko_trainer.tracking.runs import FamilyRun

TRAINED_FILE = "trained.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the training workers leave for the driver."""

    spec_digest: str
    teacher: dict[str, Any]
    """`metrics`, `size_bytes`, `parameters`, `sha256`, and the `stage` that left its checkpoint."""
    members: dict[str, dict[str, Any]]
    """Device target → `sha256`, `shape`, `parameters`, and the `stage` that left its checkpoint."""
    candidates: list[dict[str, Any]]
    curves: dict[str, str]
    """Name of a training stage → the stage."""

    @classmethod
    def read(cls, storage: Storage) -> Trained:
        """What the workers of this storage left last."""
        content = storage.read(TRAINED_FILE)
        assert content is not None, "the training workers ended and left neither a family nor a failure"
        return cls(**json.loads(content))


def train_family(request_file: str, world: World) -> None:
    """Run the training stages on one worker and leave `trained.json`, or `failure.json`, in the storage.

    What the user has to know is written. It is raised as well where other workers would wait for this one, and
    the workers that Ray starts in its place then see that it is written.
    """
    request = RunRequest.model_validate_json(Path(request_file).read_text())
    storage = open_storage(request.storage, rank=world.rank)
    if read_failure(storage) is not None:
        return
    family: FamilyRun | None = None
    try:
        family = FamilyRun.open(request) if world.rank == 0 else None
        with explained_full_disk(storage.directory):
            trained = _train(request, storage, world, family)
            if world.rank == 0:
                storage.write(TRAINED_FILE, to_json(vars(trained)))
    except (InterruptedRunError, DivergedError) as error:
        # All workers stop at the same step, so one may speak for them.
        if world.rank == 0:
            write_failure(storage, failure_of(error))
    except UserError as error:
        write_failure(storage, failure_of(error))
        if world.size > 1:
            raise
    finally:
        if family is not None:
            family.close()


def failure_of(error: UserError | InterruptedRunError) -> Failure:
    """The record of an error that was written for the user."""
    resumable = isinstance(error, InterruptedRunError) or error.reason in (
        "TrackingUnreachable",
        "StorageFull",
        "StorageNotWritable",
        "WorkerLost",
        "OutOfMemory",
    )
    return Failure.model_validate({"reason": error.reason, "message": str(error), "resumable": resumable})


def write_failure(storage: Storage, failure: Failure) -> None:
    """Leave a failure where the driver, and an operator that shares the directory, looks for it."""
    storage.write(FAILURE_FILE, failure.to_json().encode())


def read_failure(storage: Storage) -> Failure | None:
    """The failure that a worker of this attempt left."""
    content = storage.read(FAILURE_FILE)
    return None if content is None else Failure.model_validate_json(content)


def _train(request: RunRequest, storage: Storage, world: World, family: FamilyRun | None) -> Trained:
    check = MemoryCheck.of_worker(request.spec, world)
    inputs = load_checked(request, cache=storage.cache, check=check, family=family)
    if family is not None:
        family.set_tags(
            lineage_tags(
                seed=request.spec.seed,
                teacher_sha256=inputs.teacher.sha256,
                data_sha256=inputs.data_digests,
            )
        )
    training = Training(
        request=request,
        inputs=inputs,
        runner=StageRunner(
            store=StageStore(storage=storage),
            world=world,
            stop=StopFlag(storage=storage),
            meter=meter_for(request.spec),
            family=family,
        ),
        precision=training_precision(
            wanted=request.spec.pipeline.mlfs.precision if request.spec.pipeline.mlfs else "auto",
            device=world.device,
        ),
    )
    check_delta(training)
    teacher = teacher_stage(training)
    inputs.forget_weights()
    if training.mlfs is None:
        full = teacher_shape(training.inputs.teacher.model.config)
        selected = select_stage(training, ordered=teacher, trained=teacher, shapes=(full,))
        return _members(training, teacher, teacher, selected, stages=[teacher], ordered=teacher)
    ordered = order_stage(training, teacher=teacher)
    full = teacher_shape(training.inputs.teacher.model.config)
    shapes = palette_shapes(palette_stage(training, ordered=ordered))
    trained = _train_supernet(training, shapes=shapes, full=full, ordered=ordered)
    selected = select_stage(training, ordered=ordered, trained=trained[-1], shapes=shapes)
    return _members(training, teacher, trained[-1], selected, stages=[teacher, *trained], ordered=ordered)


def _train_supernet(
    training: Training, *, shapes: tuple[Shape, ...], full: Shape, ordered: FinishedStage
) -> list[FinishedStage]:
    """Stages 1 and 2 for the shapes that are not the teacher itself; at least the stage that they start from."""
    assert training.mlfs is not None
    in_place = training.mlfs.distillation.teacher == "InPlace"
    nested = tuple(shape for shape in shapes if in_place or shape != full)
    if not nested:
        return [ordered]
    palette, stages = Palette(shapes=nested), training.mlfs.stages
    widths = supernet_stage(
        training,
        name="widths",
        settings=stages.widths,
        palette=palette.widths(full=full),
        teacher=ordered,
        start=ordered,
    )
    depths = supernet_stage(
        training, name="depths", settings=stages.depths, palette=palette, teacher=ordered, start=widths
    )
    return [widths, depths]


def _members(
    training: Training,
    teacher: FinishedStage,
    trained: FinishedStage,
    selected: FinishedStage,
    *,
    stages: list[FinishedStage],
    ordered: FinishedStage,
) -> Trained:
    decision: Chosen = chosen(selected)
    full = teacher_shape(training.inputs.teacher.model.config)
    shapes = sorted(set(decision.shape_of.values()))
    cut = {
        shape: member_stage(
            training,
            shape=shape,
            teacher=ordered,
            trained=weights_of(training, shape, full=full, ordered=ordered, trained=trained),
            part=Part(phase="recovery", index=index, count=len(shapes)),
        )
        for index, shape in enumerate(shapes)
    }
    made = {
        shape: [
            stage,
            *delta_stages(training, shape=str(shape), member=stage, index=index, count=len(cut)),
        ]
        for index, (shape, stage) in enumerate(cut.items())
    }
    return Trained(
        spec_digest=training.request.spec_digest,
        teacher={
            **teacher.record,
            "metrics": decision.teacher_metrics,
            "stage": teacher.identity,
        },
        members={
            target: {
                **made[shape][-1].record,
                "shape": shape_entry(shape),
                "stage": made[shape][-1].identity,
            }
            for target, shape in decision.shape_of.items()
        },
        candidates=decision.candidates,
        curves={stage.name: stage.identity for stage in [*stages, *chain.from_iterable(made.values())]},
    )
