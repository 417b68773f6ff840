"""What would help where a stage does not fit: each change is estimated before it is proposed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from ireko_api.spec import CompressionRunSpec
from ireko_trainer.memory.dry import Kept, Pass
from ireko_trainer.memory.parts import AtOnce, Texts
from ireko_trainer.memory.stages import estimate
from ireko_trainer.memory.terms import Stage, size


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that an estimate depends on."""

    spec: CompressionRunSpec
    config: PretrainedConfig
    texts: Texts
    precision: torch.dtype
    at_once: AtOnce
    on_gpu: bool = False
    passes: dict[Pass, Kept] = field(default_factory=dict)
    """Those that were made already: changes of the run share them."""

    def stages(self) -> list[Stage]:
        """See `estimate`."""
        return estimate(
            spec=self.spec,
            config=self.config,
            texts=self.texts,
            precision=self.precision,
            at_once=self.at_once,
            on_gpu=self.on_gpu,
            passes=self.passes,
        )


def remedies(run: Run, stage: Stage) -> list[str]:
    """The changes of the manifest that lower the peak of a stage, each with what it would need then."""
    found = []
    for words, changed in _changes(run):
        then = next((one.needed for one in changed.stages() if one.name == stage.name), 0)
        if then < 0.98 * stage.needed:
            found.append(f"{words} (then {size(then)})")
    return found


def _changes(run: Run) -> Iterator[tuple[str, Run]]:
    yield from _in_training(run)
    yield from _in_deltas(run)
    yield from _in_quantization(run)
    half = Texts(
        train=max(1, run.texts.train // 2),
        validation=max(1, run.texts.validation // 2),
        calibration=max(1, run.texts.calibration // 2),
    )
    if half != run.texts:
        yield "texts half as long (maxLength in spec.data)", replace(run, texts=half)
    if run.spec.evaluation.batch_size > 1:
        fewer = run.spec.evaluation.batch_size // 2
        yield f"spec.evaluation.batchSize: {fewer}", _with(run, "evaluation.batch_size", fewer)


def _in_training(run: Run) -> Iterator[tuple[str, Run]]:
    mlfs = run.spec.pipeline.mlfs
    if mlfs is None:
        return
    field = "spec.pipeline.mlfs"
    if mlfs.stages.teacher.method == "Full":
        changed = _with(run, "pipeline.mlfs.stages.teacher.method", "LowRank")
        yield f"{field}.stages.teacher.method: LowRank", changed
    if not mlfs.gradient_checkpointing:
        changed = _with(run, "pipeline.mlfs.gradient_checkpointing", True)
        yield f"{field}.gradientCheckpointing: true", changed
    if run.precision == torch.float32:
        yield f"{field}.precision: bfloat16", replace(run, precision=torch.bfloat16)
    fewer = mlfs.batch_size // 2
    workers = run.spec.training_workers
    # Workers that share a batch get two texts each at least.
    if fewer >= (2 * workers if workers > 1 else 1):
        yield f"{field}.batchSize: {fewer}", _with(run, "pipeline.mlfs.batch_size", fewer)
    if mlfs.recovery is not None:
        yield f"no {field}.recovery", _with(run, "pipeline.mlfs.recovery", None)


def _in_deltas(run: Run) -> Iterator[tuple[str, Run]]:
    delta = run.spec.pipeline.delta
    if delta is None:
        return
    field = "spec.pipeline.delta"
    if delta.initialization == "Curvature":
        changed = _with(run, "pipeline.delta.initialization", "Whitened")
        yield f"{field}.initialization: Whitened", changed
    if delta.modules == "All":
        yield f"{field}.modules: Attention", _with(run, "pipeline.delta.modules", "Attention")
    if delta.recovery is not None and delta.recovery.batch_size > 1:
        fewer = delta.recovery.batch_size // 2
        yield f"{field}.recovery.batchSize: {fewer}", _with(run, "pipeline.delta.recovery.batch_size", fewer)


def _in_quantization(run: Run) -> Iterator[tuple[str, Run]]:
    quantization = run.spec.pipeline.quantization
    if quantization is None:
        return
    field = "spec.pipeline.quantization"
    if len(quantization.bits) > 2:
        few = quantization.bits[-2:]
        yield f"{field}.bits: {list(few)}", _with(run, "pipeline.quantization.bits", few)
    if quantization.method != "RTN":
        yield f"{field}.method: RTN", _with(run, "pipeline.quantization.method", "RTN")


def _with(run: Run, path: str, value: Any) -> Run:
    """The same run with one field of its spec changed."""

    def change(model: Any, names: list[str]) -> Any:
        first, *rest = names
        return model.model_copy(update={first: change(getattr(model, first), rest) if rest else value})

    return replace(run, spec=change(run.spec, path.split(".")))
