"""The two stages that choose: which shapes to train (palette), and which of them ships to which target (select)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ireko_trainer.data import EncodedDataset
from ireko_trainer.errors import InterruptedRunError
from ireko_trainer.evaluation import Forward, foresee, predict
from ireko_trainer.evaluation.harness import answer_questions
from ireko_trainer.mlfs import Shape, Supernet, shapes_of_space, skeleton, teacher_heads, teacher_shape
from ireko_trainer.pipeline.allocation import Watch
from ireko_trainer.pipeline.bits import (
    BitPlanner,
    answer_kind,
    group_size,
    uniform_bits,
)
from ireko_trainer.pipeline.deltas import (
    StepWatch,
    delta_key,
    delta_of,
    expected_size,
    factor,
    finished,
)
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.judging import (
    AnyJudge,
    Judge,
    LanguageJudge,
    as_forward,
    sample_batches,
    sample_of,
)
from ireko_trainer.pipeline.stage import StageAtWork
from ireko_trainer.pipeline.store import FinishedStage, content_key
from ireko_trainer.pipeline.training import Training, make_supernet
from ireko_trainer.quant import describe, fake_quantized
from ireko_trainer.search.limits import MEBIBYTE, DeviceLimits
from ireko_trainer.search.palette import Scored, shapes_for_target
from ireko_trainer.search.selection import Candidate, choose

SHAPES_PER_TARGET = 2
"""Shapes trained for each target. More would give each of them fewer steps of its own."""
_PALETTE_TOKENS = 16384
_PALETTE_SAMPLE = 128
"""Texts on which untrained slices are compared; dozens of slices are, and the comparison is a rough one anyway."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the select stage decided."""

    shape_of: dict[str, Shape]
    """Device target → shape of its member."""
    teacher_metrics: dict[str, float]
    candidates: list[dict[str, Any]]


def device_limits(training: Training) -> list[DeviceLimits]:
    """The constraints of every device target of the manifest."""
    return [
        DeviceLimits(
            target=target.name,
            field=f"spec.deviceTargets[{index}]",
            max_bytes=int(target.constraints.max_size_mib * MEBIBYTE),
            min_quality=target.constraints.min_quality,
            min_quality_ratio=target.constraints.min_quality_ratio,
        )
        for index, target in enumerate(training.request.spec.device_targets)
    ]


def judge(
    training: Training,
    *,
    teacher: PreTrainedModel,
    data: EncodedDataset,
    precision: torch.dtype,
) -> AnyJudge:
    """A judge of models on `data` against `teacher`."""
    if training.inputs.task == "text-generation":
        return _language_judge(training, teacher=as_forward(teacher), data=data, precision=precision)
    reference = predict(
        forward=as_forward(teacher),
        data=data,
        task=training.inputs.task,
        batch_size=training.request.spec.evaluation.batch_size,
        device=training.device,
        precision=precision,
    )
    return Judge(
        task=training.inputs.task,
        regression=training.inputs.regression,
        metric=training.inputs.metric,
        data=data,
        batch_size=training.request.spec.evaluation.batch_size,
        reference=reference,
        device=training.device,
        precision=precision,
    )


def _language_judge(
    training: Training, *, teacher: Forward, data: EncodedDataset, precision: torch.dtype
) -> LanguageJudge:
    batch_size = training.request.spec.evaluation.batch_size
    return LanguageJudge(
        metric=training.inputs.metric,
        data=data,
        batch_size=batch_size,
        teacher=teacher,
        reference=foresee(
            forward=teacher, data=data, batch_size=batch_size, device=training.device, precision=precision
        ),
        device=training.device,
        precision=precision,
    )


def evaluation_data(training: Training) -> EncodedDataset:
    """The validation data, up to `spec.evaluation.limit`."""
    limit = training.request.spec.evaluation.limit
    data = training.inputs.validation
    return data if limit is None else data.take(min(limit, len(data)))


# --- palette ----------------------------------------------------------------------------------------------


def palette_stage(training: Training, *, ordered: FinishedStage) -> FinishedStage:
    """Find, for every device target, the shapes that its size limit asks for."""
    spec = training.request.spec
    assert training.mlfs is not None
    quantization = spec.pipeline.quantization
    key = content_key(
        stage="palette",
        start=ordered.record["sha256"],
        calibration=training.inputs.calibration.digest,
        space=training.mlfs.search_space.model_dump(),
        targets=sorted({limits.max_bytes for limits in device_limits(training)}),
        bits=None if quantization is None else quantization.bits,
        group=group_size(quantization),
        **delta_key(training),
    )
    body = partial(_palette_body, training, ordered)
    return training.runner.run(name="palette", key=key, body=body, alone=True)


def palette_shapes(stage: FinishedStage) -> tuple[Shape, ...]:
    """The shapes that a palette stage found."""
    return tuple(shape_from(entry) for entry in stage.record["shapes"])


def _palette_body(training: Training, ordered: FinishedStage, stage: StageAtWork) -> Json:
    assert training.mlfs is not None
    model = training.load(ordered.output("checkpoint"))
    space = training.mlfs.search_space
    shapes = shapes_of_space(
        full=teacher_shape(model.config),
        hidden=space.hidden,
        intermediate=space.intermediate,
        layers=space.layers,
        heads=teacher_heads(model.config),
    )
    found: dict[str, list[Scored]] = {}
    sizes, quality = _predictors(training, model, stage)
    targets = device_limits(training)
    for index, limits in enumerate(targets):
        stage.check_stop(index, len(targets), f"shapes for {limits.target}")
        found[limits.target] = shapes_for_target(
            limits=limits,
            shapes=shapes,
            bits=_bit_widths(training),
            size_of=sizes,
            quality_of=quality,
            count=SHAPES_PER_TARGET,
        )
    chosen = sorted({scored.shape for scores in found.values() for scored in scores})
    return {
        "shapes": [shape_entry(shape) for shape in chosen],
        "found": {target: [_scored_entry(scored) for scored in scores] for target, scores in found.items()},
    }


def _bit_widths(training: Training) -> Sequence[int | None]:
    quantization = training.request.spec.pipeline.quantization
    return [None] if quantization is None else list(quantization.bits)


def _predictors(
    training: Training, model: PreTrainedModel, stage: StageAtWork
) -> tuple[Callable[[Shape, int | None], int], Callable[[Shape, int | None], float]]:
    """The size of a shape at a width, by arithmetic, and the closeness of its untrained slice to the teacher."""
    quantization = training.request.spec.pipeline.quantization
    columns = group_size(quantization)
    calibration = training.inputs.calibration
    sample = sample_of(calibration, texts=_PALETTE_SAMPLE, tokens=_PALETTE_TOKENS)
    judged = judge(training, teacher=model, data=sample, precision=training.precision)
    supernet = Supernet(model=model)

    @cache
    def size_of(shape: Shape, bits: int | None) -> int:
        hollow = skeleton(model, shape)
        layout = describe(hollow)
        module_bits = uniform_bits(layout, bits=bits)
        return expected_size(training, hollow, layout, bits=module_bits, group_size=columns)

    @cache
    def quality_of(shape: Shape, bits: int | None) -> float:
        if stage.stop():
            raise InterruptedRunError(f"stopped in stage {stage.name} at the untrained {shape}")
        slice_ = supernet.extract(shape)
        module_bits = uniform_bits(describe(slice_), bits=bits)
        with fake_quantized(slice_, bits=module_bits, group_size=columns):
            return judged.closeness(as_forward(slice_))

    return size_of, quality_of


# --- select -----------------------------------------------------------------------------------------------


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


def answers(training: Training, model: PreTrainedModel) -> dict[str, float]:
    """Share of right answers to the questions of the manifest, by benchmark."""
    if not training.inputs.questions:
        return {}
    return answer_questions(
        model=model,
        tokenizer=training.inputs.teacher.tokenizer,
        questions=training.inputs.questions,
        batch_size=training.request.spec.evaluation.batch_size,
    )


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


def shape_entry(shape: Shape) -> dict[str, Any]:
    """A shape as JSON."""
    return {
        "hidden": shape.hidden,
        "heads": shape.heads,
        "intermediate": shape.intermediate,
        "layers": list(shape.layers),
    }


def shape_from(entry: dict[str, Any]) -> Shape:
    """A shape from JSON."""
    return Shape(
        hidden=entry["hidden"],
        heads=entry["heads"],
        intermediate=entry["intermediate"],
        layers=tuple(entry["layers"]),
    )


def _scored_entry(scored: Scored) -> dict[str, Any]:
    return {
        "shape": shape_entry(scored.shape),
        "bits": scored.bits,
        "size_bytes": scored.size_bytes,
        "closeness": scored.quality,
    }


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
