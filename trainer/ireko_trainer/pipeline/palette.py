"""The stage that finds which shapes to train: for every device target those that its size limit asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from transformers import PreTrainedModel

from ireko_trainer.errors import InterruptedRunError
from ireko_trainer.mlfs import Shape, Supernet, shapes_of_space, skeleton, teacher_heads, teacher_shape
from ireko_trainer.pipeline.bits import (
    group_size,
    uniform_bits,
)
from ireko_trainer.pipeline.deltas import (
    delta_key,
    expected_size,
)
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.judging import (
    as_forward,
    sample_of,
)
from ireko_trainer.pipeline.quality import judge
from ireko_trainer.pipeline.stage import StageAtWork
from ireko_trainer.pipeline.store import FinishedStage, content_key
from ireko_trainer.pipeline.training import Training
from ireko_trainer.quant import describe, fake_quantized
from ireko_trainer.search.limits import MEBIBYTE, DeviceLimits
from ireko_trainer.search.palette import Scored, shapes_for_target

SHAPES_PER_TARGET = 2
"""Shapes trained for each target. More would give each of them fewer steps of its own."""
_PALETTE_TOKENS = 16384
_PALETTE_SAMPLE = 128
"""Texts on which untrained slices are compared; dozens of slices are, and the comparison is a rough one anyway."""


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
