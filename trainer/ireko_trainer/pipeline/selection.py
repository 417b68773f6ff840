"""The stage that chooses which trained shape ships to which target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ireko_trainer.mlfs import Shape, teacher_shape
from ireko_trainer.pipeline.allocation import Watch
from ireko_trainer.pipeline.bits import (
    BitPlanner,
    answer_kind,
)
from ireko_trainer.pipeline.deltas import (
    StepWatch,
    delta_key,
    delta_of,
    factor,
    finished,
)
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.judging import (
    AnyJudge,
    as_forward,
    sample_batches,
)
from ireko_trainer.pipeline.palette import device_limits, shape_entry, shape_from
from ireko_trainer.pipeline.quality import answers, evaluation_data, judge
from ireko_trainer.pipeline.stage import StageAtWork
from ireko_trainer.pipeline.store import FinishedStage, content_key
from ireko_trainer.pipeline.training import Training, make_supernet
from ireko_trainer.search.limits import DeviceLimits
from ireko_trainer.search.selection import Candidate, choose


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the select stage decided."""

    shape_of: dict[str, Shape]
    """Device target → shape of its member."""
    teacher_metrics: dict[str, float]
    candidates: list[dict[str, Any]]


def select_stage(
    training: Training, *, ordered: FinishedStage, trained: FinishedStage, shapes: Sequence[Shape]
) -> FinishedStage:
    """Evaluate every trained shape with the bits that each target has room for, and choose one for each target."""
    spec = training.request.spec
    quantization = spec.pipeline.quantization
    key = content_key(
        stage="select",
        teacher=ordered.record["sha256"],
        trained=trained.record["sha256"],
        validation=training.inputs.validation.digest,
        calibration=training.inputs.calibration.digest,
        limit=spec.evaluation.limit,
        metric=training.inputs.metric,
        targets=[[limits.target, limits.max_bytes] for limits in device_limits(training)],
        quantization=None if quantization is None else quantization.model_dump(),
        shapes=[shape_entry(shape) for shape in shapes],
        **training.inputs.question_digests,
        **delta_key(training),
        seed=spec.seed,
        precision=str(training.precision),
    )
    body = partial(_select_body, training, ordered, trained, shapes)
    return training.runner.run(name="select", key=key, body=body, alone=True)


def chosen(stage: FinishedStage) -> Chosen:
    """What a select stage decided."""
    return Chosen(
        shape_of={target: shape_from(entry) for target, entry in stage.record["chosen"].items()},
        teacher_metrics=stage.record["teacher_metrics"],
        candidates=stage.record["candidates"],
    )


def weights_of(
    training: Training, shape: Shape, *, full: Shape, ordered: FinishedStage, trained: FinishedStage
) -> FinishedStage:
    """The stage whose weights a shape is cut from: the largest member is the stage-0 teacher itself, unless the
    largest subnet trained in place."""
    in_place = training.mlfs is not None and training.mlfs.distillation.teacher == "InPlace"
    return ordered if shape == full and not in_place else trained


def _select_body(
    training: Training,
    ordered: FinishedStage,
    trained: FinishedStage,
    shapes: Sequence[Shape],
    stage: StageAtWork,
) -> Json:
    teacher = training.load(ordered.output("checkpoint"))
    judged = judge(training, teacher=teacher, data=evaluation_data(training), precision=training.precision)
    full = teacher_shape(teacher.config)
    entries: list[dict[str, Any]] = []
    targets = device_limits(training)
    offered: dict[str, list[Candidate]] = {limits.target: [] for limits in targets}
    total = len(shapes) * len(targets)
    for index, shape in enumerate(shapes):
        source = weights_of(training, shape, full=full, ordered=ordered, trained=trained)
        model = _cut(training, source, shape)
        watch = partial(stage.check_stop, index * len(targets), total)
        entries.append(_float_entry(model, shape, judged))
        if delta_of(training) is not None:
            # Compared as they ship, but for the training of the factors.
            watch(f"factoring {shape}")
            factor(training, model, stage=stage, watch=_worded(watch, f"factoring {shape}"))
            model = finished(training, model)
        bench = _Bench(shape=shape, planner=_planner(training, model, watch), judged=judged)
        for number, limits in enumerate(targets):
            stage.check_stop(index * len(targets) + number, total, f"{shape} for {limits.target}")
            candidate = bench.candidate(limits)
            offered[limits.target].append(candidate)
            entries.append(_candidate_entry(candidate, limits.target))
    picks = {limits.target: choose(limits=limits, candidates=offered[limits.target]) for limits in targets}
    return {
        "chosen": {target: shape_entry(candidate.shape) for target, candidate in picks.items()},
        "candidates": entries,
        "teacher_metrics": _exactly(training, teacher),
    }


def _worded(watch: Watch, prefix: str) -> StepWatch:
    """Tells a part of a step of `watch` in words alone."""
    return lambda _done, _total, what: watch(f"{prefix}, {what}")


def _exactly(training: Training, teacher: PreTrainedModel) -> dict[str, float]:
    """The teacher's metrics in float32, as the finished members are measured."""
    exact = judge(training, teacher=teacher, data=evaluation_data(training), precision=torch.float32)
    return {**exact.metrics(as_forward(teacher)), **answers(training, teacher)}


def _cut(training: Training, source: FinishedStage, shape: Shape) -> PreTrainedModel:
    if training.mlfs is None:
        return training.load(source.output("checkpoint"))
    return make_supernet(training, source).extract(shape).eval()


def _planner(training: Training, model: PreTrainedModel, watch: Watch) -> BitPlanner:
    spec = training.request.spec
    return BitPlanner(
        model=model,
        quantization=spec.pipeline.quantization,
        batches=lambda: sample_batches(training.inputs.calibration, batch_size=32, device=training.device),
        seed=spec.seed,
        kind=answer_kind(task=training.inputs.task, regression=training.inputs.regression),
        draft=True,
        watch=watch,
    )


class _Bench:
    """One trained shape with the bits of every target; two targets with room for the same bits share a measurement."""

    def __init__(self, *, shape: Shape, planner: BitPlanner, judged: AnyJudge) -> None:
        self._shape = shape
        self._planner = planner
        self._judged = judged
        self._quality: dict[tuple[tuple[str, int], ...], float] = {}

    def candidate(self, limits: DeviceLimits) -> Candidate:
        """The shape with the bits that the target has room for; with the lowest bits if it has room for none."""
        plan = self._planner.plan(max_bytes=limits.max_bytes)
        key = tuple(sorted(plan.module_bits.items()))
        if key not in self._quality:
            with self._planner.applied(plan) as model:
                self._quality[key] = self._judged.quality(as_forward(model))
        return Candidate(
            shape=self._shape,
            average_bits=plan.average_bits,
            size_bytes=plan.size_bytes,
            quality=self._quality[key],
        )


# --- records ----------------------------------------------------------------------------------------------


def _candidate_entry(candidate: Candidate, target: str) -> dict[str, Any]:
    return {
        "shape": shape_entry(candidate.shape),
        "target": target,
        "average_bits": candidate.average_bits,
        "size_bytes": candidate.size_bytes,
        "quality": candidate.quality,
    }


def _float_entry(model: PreTrainedModel, shape: Shape, judged: AnyJudge) -> dict[str, Any]:
    return {
        "shape": shape_entry(shape),
        "target": None,
        "average_bits": 32.0,
        "size_bytes": 4 * sum(parameter.numel() for parameter in model.parameters()),
        "quality": judged.quality(as_forward(model)),
    }
