"""The stages between choosing a member and quantizing it: its matrices are factored, and the factors trained.

A member is factored by the first worker alone and read by all from what it wrote: decompositions on different machines
may differ in their last bits, and averaged gradients have to belong to one model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from ireko_api.spec import Delta, DeltaRecovery
from ireko_trainer.delta import (
    DeltaOptions,
    DeltaPlan,
    Metrics,
    ReplacementSchedule,
    Spread,
    apply_plan,
    check_options,
    collect_moments,
    delta_layers,
    expected_share,
    forget_originals,
    make_compact,
    materialize,
    measured_modules,
    one_by_one,
    plan_deltas,
    refit_deltas,
    remember_originals,
    train_deltas,
)
from ireko_trainer.mlfs import Optimization
from ireko_trainer.pipeline.bits import answer_kind
from ireko_trainer.pipeline.checkpoints import (
    load_state,
    save_factored,
    save_model,
    training_hooks,
    weights_sha256,
)
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.judging import sample_batches
from ireko_trainer.pipeline.stage import Part, StageAtWork
from ireko_trainer.pipeline.store import FinishedStage, content_key
from ireko_trainer.pipeline.training import Training, stage_seed
from ireko_trainer.quant import Batch, Kind, Layout, QuantizedWeights, describe, stored_size

_FIELD = "spec.pipeline.delta"
DELTA_ROWS = 8
"""Texts at once in a backward pass over all matrices."""
_PACKED_RANKS = 32
"""Ranks are multiples of the smallest group of weights that shares a scale, where factors are quantized."""
_WORTH_SPREADING = 10**10
"""Multiplications m·n·min(m, n) of one decomposition of every matrix, below which other processes have hardly started
when this one is done."""
_PLANNING = 9
"""Tenths of the work of factoring that choosing ranks is: it decomposes each matrix in many ways, and then in one."""

StepWatch = Callable[[int, int, str], None]
"""Told how many parts of how many are done, and of what; raises to stop."""

log = logging.getLogger(__name__)


def delta_of(training: Training) -> Delta | None:
    """The manifest's `spec.pipeline.delta`."""
    return training.request.spec.pipeline.delta


def delta_key(training: Training) -> dict[str, Any]:
    """What a stage depends on that factors models; nothing where none are."""
    delta = delta_of(training)
    if delta is None:
        return {}
    return {"delta": delta.model_dump(exclude={"recovery", "materialize"}), **_plain_key(delta)}


def _plain_key(delta: Delta) -> dict[str, Any]:
    return {"materialize": True} if delta.materialize else {}


def delta_options(training: Training) -> DeltaOptions:
    """The manifest's settings as the algorithm takes them."""
    delta, quantization = delta_of(training), training.request.spec.pipeline.quantization
    assert delta is not None
    return DeltaOptions(
        reduction=delta.target_reduction,
        rank=delta.rank,
        modules=delta.modules,
        sharing=delta.sharing,
        coefficients=delta.coefficients,
        initialization=delta.initialization,
        span=delta.span,
        keep_first=delta.keep_first,
        keep_last=delta.keep_last,
        multiple=1 if quantization is None else quantization.group_size or _PACKED_RANKS,
    )


def check_delta(training: Training) -> None:
    """Refuse before anything is trained what the teacher's shape already rules out."""
    if delta_of(training) is not None:
        check_options(model=training.inputs.teacher.model, options=delta_options(training), field=_FIELD)


def expected_size(
    training: Training, model: PreTrainedModel, layout: Layout, *, bits: dict[str, int], group_size: int
) -> int:
    """Bytes of the weight file of a member before it is factored, by arithmetic; `model` may be hollow."""
    size = stored_size(layout, bits=bits, group_size=group_size)
    delta = delta_of(training)
    if delta is None or delta.materialize:
        return size.total
    return size.total - int(size.blocks * (1 - expected_share(model=model, options=delta_options(training))))


def factor(training: Training, model: PreTrainedModel, *, stage: StageAtWork, watch: StepWatch) -> DeltaPlan:
    """Factor `model` in place, on the calibration data."""
    options = delta_options(training)
    check_options(model=model, options=options, field=_FIELD)
    curved = options.initialization == "Curvature"
    moments = collect_moments(
        model=model,
        batches=_calibration(training),
        modules=measured_modules(model, options),
        kind=_kind(training) if curved else None,
        seed=stage_seed(training, "delta"),
    )
    spread = _spread(stage, model)
    plan = plan_deltas(
        model=model,
        moments=moments,
        options=options,
        field=_FIELD,
        spread=spread,
        on_decomposed=lambda done, total: watch(
            _PLANNING * done, 10 * total, f"{done} of {total} decompositions"
        ),
    )
    apply_plan(
        model=model,
        plan=plan,
        metrics=Metrics(model=model, moments=moments, initialization=options.initialization),
        spread=spread,
        on_decomposed=lambda done, total: watch(
            _PLANNING * total + (10 - _PLANNING) * done, 10 * total, f"{done} of {total} factors"
        ),
    )
    return plan


def _spread(stage: StageAtWork, model: PreTrainedModel) -> Spread:
    """What runs the decompositions of a model: other processes too where that is worth their start."""
    matrices = [matrix for found in describe(model).blocks.values() for matrix in found]
    work = sum(m.weights * min(m.rows, m.columns) for m in matrices)
    return stage.world.spread if work >= _WORTH_SPREADING else one_by_one


def finished(training: Training, model: PreTrainedModel) -> PreTrainedModel:
    """The factored model as it ships, factored or multiplied out; `model` is used up."""
    delta = delta_of(training)
    assert delta is not None
    forget_originals(model)
    if delta.materialize:
        return materialize(model)
    make_compact(model)
    return model


def refit(
    training: Training, model: PreTrainedModel, weights: QuantizedWeights, bits: dict[str, int]
) -> None:
    """Fit the factors of a quantized model to what has been rounded before them; changes `model` and `weights`."""
    if not bits or not delta_layers(model):
        return
    moments = collect_moments(
        model=model, batches=_calibration(training), modules=list(delta_layers(model)), kind=None
    )
    refit_deltas(model=model, weights=weights, bits=bits, moments=moments.inputs)


# --- stages -----------------------------------------------------------------------------------------------


def delta_stages(
    training: Training, *, shape: str, member: FinishedStage, index: int, count: int
) -> list[FinishedStage]:
    """Factor a member and, if the manifest asks for it, train the factors; the last stage has what ships."""
    delta = delta_of(training)
    if delta is None:
        return []
    part = Part(phase="delta", index=2 * index, count=2 * count)
    factored = training.runner.run(
        name=f"factor-{shape}",
        key=content_key(
            stage="factor",
            member=member.record["sha256"],
            calibration=training.inputs.calibration.digest,
            multiple=delta_options(training).multiple,
            trained=delta.recovery is not None,
            seed=training.request.spec.seed,
            **delta_key(training),
        ),
        body=partial(_factor_body, training, member),
        part=part,
        alone=True,
    )
    if delta.recovery is None:
        return [factored]
    trained = training.runner.run(
        name=f"delta-{shape}",
        key=content_key(
            stage="delta",
            factored=factored.record["sha256"],
            member=member.record["sha256"],
            train=training.inputs.train.digest,
            recovery=delta.recovery.model_dump(exclude={"checkpoint_seconds"}),
            **_plain_key(delta),
            seed=training.request.spec.seed,
            precision=str(training.precision),
        ),
        body=partial(_train_body, training, delta.recovery, member, factored),
        part=Part(phase="delta", index=2 * index + 1, count=2 * count),
    )
    return [factored, trained]


def _factor_body(training: Training, member: FinishedStage, stage: StageAtWork) -> Json:
    stage.check_stop(0, 1, "measuring moments")
    delta = delta_of(training)
    assert delta is not None
    model = training.load(member.output("checkpoint"))
    plan = factor(training, model, stage=stage, watch=stage.check_stop)
    warning = plan.warning() if delta.sharing == "Delta" else None
    if warning is not None:
        log.warning("spec.pipeline.delta: %s", warning)
    if delta.recovery is None:
        model = finished(training, model)
    return {**_saved(training, model, stage), "delta": {**_summary(plan), "warning": warning}}


def _train_body(
    training: Training,
    recovery: DeltaRecovery,
    member: FinishedStage,
    factored: FinishedStage,
    stage: StageAtWork,
) -> Json:
    model = training.load(factored.output("checkpoint"))
    remember_originals(model, training.load(member.output("checkpoint")))
    train_deltas(
        model=model,
        batches=training.batch_at("delta", batch_size=recovery.batch_size),
        kind=_kind(training),
        optimization=Optimization(
            steps=recovery.steps, learning_rate=recovery.learning_rate, weight_decay=0.0
        ),
        replacement=ReplacementSchedule(
            method=recovery.replacement, first=recovery.first_share, complete=recovery.complete_at
        ),
        precision=training.precision,
        seed=stage_seed(training, "delta"),
        hooks=training_hooks(
            stage, total_steps=recovery.steps, checkpoint_seconds=float(recovery.checkpoint_seconds)
        ),
        state=load_state(stage.directory),
    )
    if not stage.writes:
        return {}
    return {**_saved(training, finished(training, model), stage), "delta": factored.record["delta"]}


def _saved(training: Training, model: PreTrainedModel, stage: StageAtWork) -> Json:
    checkpoint = stage.directory / "checkpoint"
    save = save_factored if delta_layers(model) else save_model
    save(model, checkpoint, tokenizer=training.inputs.teacher.tokenizer)
    return {
        "sha256": weights_sha256(checkpoint),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _summary(plan: DeltaPlan) -> dict[str, Any]:
    return {
        "reduction": plan.reduction,
        "factored": plan.factored,
        "following": plan.following,
        "pieces": [
            {
                "modules": list(piece.modules),
                "rank": piece.rank,
                "base": piece.base,
                "coefficient": piece.coefficient,
            }
            for piece in plan.pieces
        ],
    }


def _calibration(training: Training) -> list[Batch]:
    found = sample_batches(training.inputs.calibration, batch_size=DELTA_ROWS, device=training.device)
    return list(found)


def _kind(training: Training) -> Kind:
    return answer_kind(task=training.inputs.task, regression=training.inputs.regression)
