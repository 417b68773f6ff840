"""The phases of a run and their costs, known before it starts: what progress and ETA are computed from."""

from __future__ import annotations

from ireko_api.spec import CompressionRunSpec
from ireko_trainer.pipeline.progress import ProgressMeter, StageCost

# Costs are in subnet-steps. The fixed ones are seconds of the stages of examples/quickstart.yaml, as MLflow shows
# them, divided by the 0.2 s of a subnet-step there (two cores, otherwise idle).
_ORDER = 15.0
_PALETTE_PER_TARGET = 23.0
_SELECT_PER_TARGET = 40.0
_QUANTIZE_PER_TARGET = 33.0
_PUBLISH_PER_TARGET = 8.0
_FULL_STEP = 1.6
"""A guess: a step that trains all weights also updates the embeddings, which are half of a small model."""
_TEACHER_FORWARD = 0.4
"""A guess: a third of a forward and backward pass, and the features that are compared."""


def meter_for(spec: CompressionRunSpec) -> ProgressMeter:
    """A meter over all phases of a run."""
    targets = len(spec.device_targets)
    phases = [
        *_training_phases(spec),
        StageCost(name="quantize", cost=_QUANTIZE_PER_TARGET * targets),
        StageCost(name="publish", cost=_PUBLISH_PER_TARGET * targets),
    ]
    return ProgressMeter(stages=tuple(phases))


def _training_phases(spec: CompressionRunSpec) -> list[StageCost]:
    targets = len(spec.device_targets)
    mlfs = spec.pipeline.mlfs
    select = StageCost(name="select", cost=_SELECT_PER_TARGET * targets)
    if mlfs is None:
        return [
            StageCost(name="teacher", cost=1.0),
            select,
            StageCost(name="recovery", cost=1.0),
            *_delta_phase(spec),
        ]
    per_step = _TEACHER_FORWARD + mlfs.sampling.subnets_per_step
    recovery = 0 if mlfs.recovery is None else mlfs.recovery.steps * targets * (1 + _TEACHER_FORWARD)
    return [
        StageCost(name="teacher", cost=1.0 + mlfs.stages.teacher.steps * _FULL_STEP),
        StageCost(name="order", cost=_ORDER),
        StageCost(name="palette", cost=_PALETTE_PER_TARGET * targets),
        StageCost(name="widths", cost=mlfs.stages.widths.steps * per_step),
        StageCost(name="depths", cost=mlfs.stages.depths.steps * per_step),
        select,
        StageCost(name="recovery", cost=1.0 + recovery),
        *_delta_phase(spec),
    ]


def _delta_phase(spec: CompressionRunSpec) -> list[StageCost]:
    """A guess: factoring costs about what selecting does, where every candidate is factored too."""
    delta, targets = spec.pipeline.delta, len(spec.device_targets)
    if delta is None:
        return []
    steps = 0 if delta.recovery is None else delta.recovery.steps
    return [StageCost(name="delta", cost=targets * (_SELECT_PER_TARGET + steps * (1 + _TEACHER_FORWARD)))]
