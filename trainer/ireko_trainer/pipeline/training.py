"""The stages that run on the training workers, in order: teacher, palette, widths, depths, select, recovery.

`train_family` is what every worker runs. It ends by writing `trained.json`: which checkpoint was chosen for which
device target, and what the report needs to know about the way there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ireko_api.handoff import RunRequest
from ireko_api.spec import Mlfs, SupernetStage
from ireko_trainer import mlfs as algorithm
from ireko_trainer.data import BatchOrder
from ireko_trainer.mlfs import Batch, Hooks, Palette, Shape, Supernet
from ireko_trainer.pipeline.checkpoints import (
    WEIGHTS_FILE,
    load_model,
    load_state,
    save_model,
    training_hooks,
    weights_sha256,
)
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.inputs import Inputs
from ireko_trainer.pipeline.judging import sample_batches
from ireko_trainer.pipeline.stage import Part, StageAtWork, StageRunner
from ireko_trainer.pipeline.store import FinishedStage, content_key

SUPERNET_CHECKPOINT = "checkpoint"
ORDER_ROWS = 32
"""Texts at once at most when units are put in order."""
_ORDER_TOKENS = 8192
"""Tokens that are read for it: a few hundred sentences, or a few dozen windows of running text."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the training stages of one run share."""

    request: RunRequest
    inputs: Inputs
    runner: StageRunner
    precision: torch.dtype

    @property
    def mlfs(self) -> Mlfs | None:
        """The manifest's `spec.pipeline.mlfs`."""
        return self.request.spec.pipeline.mlfs

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""
        return self.runner.world.device

    def load(self, directory: Path) -> PreTrainedModel:
        """A checkpoint of this run on this worker's device."""
        return load_model(directory, task=self.inputs.task, device=self.device)

    def batch_at(self, stage: str, *, batch_size: int | None = None) -> algorithm.train.BatchAt:
        """This worker's batch of a step; every stage reads the data in an order of its own.

        Batches have the size that MLFS asks for, unless one is given.
        """
        assert batch_size is not None or self.mlfs is not None
        order = BatchOrder(
            lengths=self.inputs.train.lengths,
            batch_size=batch_size or (self.mlfs.batch_size if self.mlfs is not None else 0),
            seed=stage_seed(self, stage),
            rank=self.runner.world.rank,
            world_size=self.runner.world.size,
        )

        def batch(step: int) -> Batch:
            return self.inputs.train.batch(order.indices(step))

        return batch

    def training_key(self) -> dict[str, Any]:
        """What every training stage depends on beside its own settings."""
        assert self.mlfs is not None
        return {
            "train": self.inputs.train.digest,
            "batchSize": self.mlfs.batch_size,
            "seed": self.request.spec.seed,
            "precision": str(self.precision),
            "task": self.inputs.task,
        }

    def hooks(self, stage: StageAtWork, *, total_steps: int) -> Hooks:
        """The hooks of a training loop in a stage."""
        assert self.mlfs is not None
        return training_hooks(
            stage, total_steps=total_steps, checkpoint_seconds=float(self.mlfs.checkpoint_seconds)
        )


# --- stage 0 ----------------------------------------------------------------------------------------------


def teacher_stage(training: Training) -> FinishedStage:
    """MLFS stage 0: the teacher, fine-tuned on the task or taken as it is."""
    settings = training.mlfs.stages.teacher if training.mlfs is not None else None
    skipped = settings is None or settings.method == "Skip"
    trained_by = (
        {}
        if settings is None or skipped
        else {
            **training.training_key(),
            "settings": settings.model_dump(),
            **_low_rank(training, settings.method),
        }
    )
    key = content_key(stage="teacher", teacher=training.inputs.teacher.sha256, **trained_by)
    return training.runner.run(name="teacher", key=key, body=partial(_teacher_body, training))


def _low_rank(training: Training, method: str) -> dict[str, Any]:
    assert training.mlfs is not None
    return {"rank": training.mlfs.rank, "alpha": training.mlfs.lora_alpha} if method == "LowRank" else {}


def _teacher_body(training: Training, stage: StageAtWork) -> Json:
    model = training.inputs.teacher.model.to(training.device)
    settings = training.mlfs.stages.teacher if training.mlfs is not None else None
    if settings is not None and settings.method != "Skip":
        assert training.mlfs is not None
        algorithm.train_teacher(
            model=model,
            batches=training.batch_at("teacher"),
            optimization=algorithm.Optimization(
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                warmup_ratio=settings.warmup_ratio,
                weight_decay=settings.weight_decay,
            ),
            method=settings.method,
            rank=training.mlfs.rank,
            alpha=float(training.mlfs.lora_alpha),
            precision=training.precision,
            gradient_checkpointing=training.mlfs.gradient_checkpointing,
            seed=training.request.spec.seed,
            hooks=training.hooks(stage, total_steps=settings.steps),
            state=load_state(stage.directory),
        )
    if not stage.writes:
        return {}
    checkpoint = stage.directory / "checkpoint"
    save_model(model, checkpoint, tokenizer=training.inputs.teacher.tokenizer)
    return {
        "sha256": weights_sha256(checkpoint),
        "size_bytes": (checkpoint / WEIGHTS_FILE).stat().st_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


# --- order ------------------------------------------------------------------------------------------------


def order_stage(training: Training, *, teacher: FinishedStage) -> FinishedStage:
    """Put what matters most first on every axis, so that the leading part of it is a good subnet."""
    assert training.mlfs is not None
    wanted = training.mlfs.sampling.importance_order
    calibration = {"calibration": training.inputs.calibration.digest} if wanted else {}
    key = content_key(stage="order", teacher=teacher.record["sha256"], **calibration)
    body = partial(_order_body, training, teacher, wanted)
    return training.runner.run(name="order", key=key, body=body, alone=True)


def _order_body(training: Training, teacher: FinishedStage, wanted: bool, stage: StageAtWork) -> Json:
    assert training.mlfs is not None
    model = training.load(teacher.output("checkpoint"))
    if wanted:
        # No more texts at once than a training step has room for.
        rows = min(ORDER_ROWS, math.ceil(training.mlfs.batch_size / training.runner.world.size))
        batches = sample_batches(training.inputs.calibration, batch_size=rows, tokens=_ORDER_TOKENS)
        algorithm.permute_by_importance(model=model, batches=map(dict, batches))
    checkpoint = stage.directory / "checkpoint"
    save_model(model, checkpoint, tokenizer=training.inputs.teacher.tokenizer)
    return {"sha256": weights_sha256(checkpoint)}


# --- stages 1 and 2 ---------------------------------------------------------------------------------------


def supernet_stage(
    training: Training,
    *,
    name: str,
    settings: SupernetStage,
    palette: Palette,
    teacher: FinishedStage,
    start: FinishedStage,
) -> FinishedStage:
    """Train one low-rank pair over the weights of `start` for the shapes of a palette.

    Leaves the weights with the pair folded in, at full size, as a checkpoint.
    """
    if settings.steps == 0:
        return start
    assert training.mlfs is not None
    key = content_key(
        stage=name,
        **training.training_key(),
        **_supernet_key(training.mlfs),
        settings=settings.model_dump(),
        shapes=[_shape_key(shape) for shape in palette.shapes],
        teacher=teacher.record["sha256"],
        start=start.record["sha256"],
    )
    body = partial(_supernet_body, training, name, settings, palette, teacher, start)
    return training.runner.run(name=name, key=key, body=body)


def _supernet_key(mlfs: Mlfs) -> dict[str, Any]:
    return {
        "rank": mlfs.rank,
        "alpha": mlfs.lora_alpha,
        "sampling": mlfs.sampling.model_dump(),
        "distillation": mlfs.distillation.model_dump(),
        "gamma": mlfs.gradient_scaling.gamma,
    }


def _supernet_body(
    training: Training,
    name: str,
    settings: SupernetStage,
    palette: Palette,
    teacher: FinishedStage,
    start: FinishedStage,
    stage: StageAtWork,
) -> Json:
    mlfs = training.mlfs
    assert mlfs is not None
    supernet = make_supernet(training, start)
    frozen = mlfs.distillation.teacher == "Frozen"
    algorithm.train_supernet(
        supernet=supernet,
        frozen_teacher=training.load(teacher.output("checkpoint")) if frozen else None,
        batches=training.batch_at(name),
        stage=algorithm.SupernetStage(
            name=name,
            palette=palette,
            optimization=algorithm.Optimization(
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                warmup_ratio=settings.warmup_ratio,
            ),
            distillation=distillation(mlfs),
            subnets_per_step=mlfs.sampling.subnets_per_step,
            gamma=mlfs.gradient_scaling.gamma,
            seed=stage_seed(training, name),
        ),
        hooks=training.hooks(stage, total_steps=settings.steps),
        state=load_state(stage.directory),
    )
    if not stage.writes:
        return {}
    checkpoint = stage.directory / "checkpoint"
    save_model(supernet.model, checkpoint, tokenizer=training.inputs.teacher.tokenizer)
    return {"sha256": weights_sha256(checkpoint)}


def make_supernet(training: Training, start: FinishedStage) -> Supernet:
    """The supernet over the weights that a stage left."""
    assert training.mlfs is not None
    return Supernet(
        model=training.load(start.output("checkpoint")),
        rank=training.mlfs.rank,
        alpha=float(training.mlfs.lora_alpha),
        precision=training.precision,
        gradient_checkpointing=training.mlfs.gradient_checkpointing,
    )


def distillation(mlfs: Mlfs) -> algorithm.Distillation:
    """The manifest's loss weights as the algorithm takes them."""
    wanted = mlfs.distillation
    return algorithm.Distillation(
        alpha=wanted.alpha, beta=wanted.beta, temperature=wanted.temperature, projection=wanted.projection
    )


# --- recovery ---------------------------------------------------------------------------------------------


def member_stage(
    training: Training, *, shape: Shape, teacher: FinishedStage, trained: FinishedStage, part: Part
) -> FinishedStage:
    """Cut one member out of the trained weights and, if the manifest asks for it, train it alone for a while."""
    recovery = training.mlfs.recovery if training.mlfs is not None else None
    alone = (
        {}
        if recovery is None or training.mlfs is None
        else {
            **training.training_key(),
            **_supernet_key(training.mlfs),
            "recovery": recovery.model_dump(),
            "teacher": teacher.record["sha256"],
        }
    )
    key = content_key(stage="member", shape=_shape_key(shape), start=trained.record["sha256"], **alone)
    body = partial(_member_body, training, shape, teacher, trained)
    return training.runner.run(name=f"member-{shape}", key=key, body=body, part=part)


def _member_body(
    training: Training, shape: Shape, teacher: FinishedStage, trained: FinishedStage, stage: StageAtWork
) -> Json:
    model = _member(training, shape, teacher, trained, stage)
    if not stage.writes:
        return {}
    checkpoint = stage.directory / "checkpoint"
    save_model(model, checkpoint, tokenizer=training.inputs.teacher.tokenizer)
    return {
        "sha256": weights_sha256(checkpoint),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _member(
    training: Training, shape: Shape, teacher: FinishedStage, trained: FinishedStage, stage: StageAtWork
) -> PreTrainedModel:
    mlfs = training.mlfs
    if mlfs is None:
        return training.load(trained.output("checkpoint"))
    supernet = make_supernet(training, trained)
    if mlfs.recovery is None or shape == supernet.full:
        # The full shape is the teacher itself or has learned from it at every step: nothing to recover.
        return supernet.extract(shape)
    return algorithm.recover(
        supernet=supernet,
        shape=shape,
        frozen_teacher=training.load(teacher.output("checkpoint")),
        batches=training.batch_at("recovery"),
        optimization=algorithm.Optimization(
            steps=mlfs.recovery.steps, learning_rate=mlfs.recovery.learning_rate
        ),
        distillation=distillation(mlfs),
        seed=stage_seed(training, "recovery"),
        hooks=training.hooks(stage, total_steps=mlfs.recovery.steps),
        state=load_state(stage.directory),
    )


def stage_seed(training: Training, name: str) -> int:
    """A seed for each stage, so that stages do not repeat each other's random choices."""
    return int(content_key(seed=training.request.spec.seed, stage=name)[:7], 16)


def _shape_key(shape: Shape) -> list[Any]:
    return [shape.hidden, shape.heads, shape.intermediate, list(shape.layers)]
