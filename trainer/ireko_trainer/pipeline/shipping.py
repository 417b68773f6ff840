"""What the driver does with the checkpoints of a family: bits, bundles, the report, and the hand-over to MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ireko_api.handoff import REPORT_ARTIFACT_DIR, Family, Member, ModelShape, RunRequest, TeacherSummary
from ireko_trainer.delta import delta_layers, save_quantized_delta
from ireko_trainer.distributed import World
from ireko_trainer.pipeline.bits import BASELINE_ORDERS, BitPlanner, Importance, answer_kind
from ireko_trainer.pipeline.checkpoints import load_model, weights_file, weights_sha256
from ireko_trainer.pipeline.deltas import refit
from ireko_trainer.pipeline.family import Trained
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.inputs import Inputs
from ireko_trainer.pipeline.judging import AnyJudge, as_forward, sample_batches
from ireko_trainer.pipeline.palette import device_limits, shape_from
from ireko_trainer.pipeline.plan import meter_for
from ireko_trainer.pipeline.quality import answers, evaluation_data, judge
from ireko_trainer.pipeline.reporting import report_content
from ireko_trainer.pipeline.stage import Part, StageAtWork, StageRunner
from ireko_trainer.pipeline.stop import StopFlag
from ireko_trainer.pipeline.storage import Storage
from ireko_trainer.pipeline.store import STATE_FILE, FinishedStage, StageStore, content_key
from ireko_trainer.pipeline.training import Training
from ireko_trainer.quant import save_quantized
from ireko_trainer.report import REPORT_FILE, write_report
from ireko_trainer.search.limits import DeviceLimits
from ireko_trainer.search.selection import Candidate, require_fit
from ireko_trainer.serving import Bundle, log_member, write_bundle
from ireko_trainer.tracking.journal import JOURNAL_FILE
from ireko_trainer.tracking.runs import FamilyRun


@dataclass(frozen=True, kw_only=True)
class _Shipping:
    """What the shipping stages share."""

    training: Training
    trained: Trained
    family: FamilyRun
    store: StageStore

    @property
    def request(self) -> RunRequest:
        return self.training.request

    @property
    def inputs(self) -> Inputs:
        return self.training.inputs

    @cached_property
    def judge(self) -> AnyJudge:
        """Judges finished members in float32; the teacher answers once for all of them."""
        teacher = self.training.load(self.checkpoint(self.trained.teacher))
        return judge(
            self.training, teacher=teacher, data=evaluation_data(self.training), precision=torch.float32
        )

    def checkpoint(self, entry: Mapping[str, Any]) -> Path:
        """The directory of the model that an entry of `trained` is about."""
        return self.store.named(entry["stage"]).output("checkpoint")


def ship(
    request: RunRequest,
    *,
    inputs: Inputs,
    trained: Trained,
    family: FamilyRun,
    stop: StopFlag,
    storage: Storage,
) -> None:
    """Quantize, check, bundle, log and describe every member, and hand the family over.

    Raises NothingFitsError when a finished member misses a constraint of its target.
    """
    store = StageStore(storage=storage)
    runner = StageRunner(
        store=store,
        world=World(),
        stop=stop,
        meter=meter_for(request.spec),
        family=family,
    )
    training = Training(request=request, inputs=inputs, runner=runner, precision=torch.float32)
    shipping = _Shipping(training=training, trained=trained, family=family, store=store)
    targets = device_limits(training)
    quantized = {
        limits.target: _quantize_stage(
            shipping, limits, part=Part(phase="quantize", index=index, count=len(targets))
        )
        for index, limits in enumerate(targets)
    }
    for limits in targets:
        _require_fit(shipping, limits, quantized[limits.target])
    _publish(shipping, quantized)


# --- quantize ---------------------------------------------------------------------------------------------


def _quantize_stage(shipping: _Shipping, limits: DeviceLimits, *, part: Part) -> FinishedStage:
    spec = shipping.request.spec
    quantization = spec.pipeline.quantization
    key = content_key(
        stage="quantize",
        member=shipping.trained.members[limits.target]["sha256"],
        teacher=shipping.trained.teacher["sha256"],
        max_bytes=limits.max_bytes,
        quantization=None if quantization is None else quantization.model_dump(),
        calibration=shipping.inputs.calibration.digest,
        validation=shipping.inputs.validation.digest,
        limit=spec.evaluation.limit,
        **shipping.inputs.question_digests,
        seed=spec.seed,
    )
    return shipping.training.runner.run(
        name=f"quantize-{limits.target}", key=key, body=partial(_quantize_body, shipping, limits), part=part
    )


def _quantize_body(shipping: _Shipping, limits: DeviceLimits, stage: StageAtWork) -> Json:
    works = len(_baseline_orders(shipping)) + 2
    stage.check_stop(0, works, f"bits for {limits.target}")
    model = shipping.training.load(shipping.checkpoint(shipping.trained.members[limits.target]))
    planner = BitPlanner(
        model=model,
        quantization=shipping.request.spec.pipeline.quantization,
        batches=lambda: sample_batches(
            shipping.inputs.calibration, batch_size=32, device=shipping.training.device
        ),
        seed=shipping.request.spec.seed,
        kind=answer_kind(task=shipping.inputs.task, regression=shipping.inputs.regression),
        watch=partial(stage.check_stop, 0, works),
        state_file=stage.directory / STATE_FILE,
        keep=stage.keep,
    )
    plan = planner.plan(max_bytes=limits.max_bytes)
    weights = planner.weights_for(plan)
    baselines = _baselines(shipping, planner, limits, stage)
    checkpoint = stage.directory / "checkpoint"
    refit(shipping.training, model, weights, dict(plan.module_bits))
    save = save_quantized_delta if delta_layers(model) else save_quantized
    save(
        model=model,
        bits=plan.module_bits,
        group_size=planner.group_size,
        directory=checkpoint,
        weights=weights,
    )
    # Judged as it ships: loaded from the file.
    loaded = load_model(checkpoint, task=shipping.inputs.task, device=shipping.training.device)
    return {
        "average_bits": plan.average_bits,
        "block_bits": dict(plan.block_bits),
        "module_bits": dict(plan.module_bits),
        "lim": planner.lim,
        "zd": planner.zd,
        "sensitivity": planner.sensitivity,
        "size_bytes": weights_file(checkpoint).stat().st_size,
        "sha256": weights_sha256(checkpoint),
        "baselines": baselines,
        "metrics": {
            **shipping.judge.metrics(as_forward(loaded)),
            **answers(shipping.training, loaded),
        },
    }


def _baselines(
    shipping: _Shipping, planner: BitPlanner, limits: DeviceLimits, stage: StageAtWork
) -> list[dict[str, Any]]:
    """The same member at the same budget with bits in other orders: what the chosen order has to beat."""
    orders = _baseline_orders(shipping)
    found = []
    for index, importance in enumerate(orders):
        stage.check_stop(index + 1, len(orders) + 2, f"baselines for {limits.target}")
        plan = planner.plan(max_bytes=limits.max_bytes, importance=importance)
        with planner.applied(plan) as model:
            metrics = shipping.judge.metrics(as_forward(model))
        found.append({"importance": importance, "size_bytes": plan.size_bytes, "metrics": metrics})
    return found


def _baseline_orders(shipping: _Shipping) -> tuple[Importance, ...]:
    quantization = shipping.request.spec.pipeline.quantization
    if quantization is None:
        return ()
    return tuple(order for order in BASELINE_ORDERS if order != quantization.importance)


def _require_fit(shipping: _Shipping, limits: DeviceLimits, quantized: FinishedStage) -> None:
    record, metric = quantized.record, shipping.inputs.metric
    require_fit(
        limits=limits,
        member=Candidate(
            shape=shape_from(shipping.trained.members[limits.target]["shape"]),
            average_bits=record["average_bits"],
            size_bytes=record["size_bytes"],
            quality=record["metrics"][metric],
        ),
        teacher_quality=shipping.trained.teacher["metrics"][metric],
    )


# --- publish ----------------------------------------------------------------------------------------------


def _publish(shipping: _Shipping, quantized: dict[str, FinishedStage]) -> None:
    key = content_key(
        stage="publish",
        spec=shipping.request.spec_digest,
        run=shipping.family.run_id,
        members={target: stage.record["sha256"] for target, stage in quantized.items()},
    )
    stage = shipping.training.runner.run(
        name="publish", key=key, body=partial(_publish_body, shipping, quantized)
    )
    shipping.family.finish(
        family=Family.model_validate_json(json.dumps(stage.record["family"])),
        report_directory=stage.output("report"),
    )
    shipping.store.sweep()


def _publish_body(shipping: _Shipping, quantized: dict[str, FinishedStage], stage: StageAtWork) -> Json:
    members = []
    for index, (target, source) in enumerate(quantized.items()):
        stage.check_stop(index, len(quantized) + 1, f"bundle for {target}")
        bundle = _bundle(shipping, source, stage.directory / "bundles" / target)
        members.append(_member(shipping, target, source, bundle))
    teacher = shipping.trained.teacher
    family = Family(
        name=shipping.request.name,
        uid=shipping.request.uid,
        spec_digest=shipping.request.spec_digest,
        run_id=shipping.family.run_id,
        teacher=TeacherSummary(
            metrics=teacher["metrics"],
            size_bytes=teacher["size_bytes"],
            parameters=teacher["parameters"],
            sha256=teacher["sha256"],
        ),
        members=tuple(members),
        report=f"{REPORT_ARTIFACT_DIR}/{REPORT_FILE}",
    )
    stage.progress(len(quantized), len(quantized) + 1, "report")
    write_report(
        content=report_content(
            request=shipping.request,
            metric=shipping.inputs.metric,
            family=family,
            trained=shipping.trained,
            quantized={target: source.record for target, source in quantized.items()},
            data_digests=shipping.inputs.data_digests,
            journals={
                name: shipping.store.named(trained).output(JOURNAL_FILE)
                for name, trained in shipping.trained.curves.items()
            },
        ),
        directory=stage.directory / "report",
    )
    return {"family": json.loads(family.to_json())}


def _bundle(shipping: _Shipping, source: FinishedStage, directory: Path) -> Bundle:
    labels = shipping.inputs.teacher.labels
    return write_bundle(
        checkpoint=source.output("checkpoint"),
        tokenizer=shipping.inputs.teacher.tokenizer,
        task=shipping.inputs.task,
        max_length=_longest_input(shipping),
        labels=() if labels is None else labels.names,
        regression=shipping.inputs.regression,
        directory=directory,
    )


def _longest_input(shipping: _Shipping) -> int:
    """Tokens that a member takes: as many as it was trained on, or, for prompt and answer, as it has positions for."""
    if shipping.inputs.task == "text-generation":
        return int(shipping.inputs.teacher.tokenizer.model_max_length)
    return shipping.request.spec.data.train.max_length


def _member(shipping: _Shipping, target: str, source: FinishedStage, bundle: Bundle) -> Member:
    record, chosen = source.record, shipping.trained.members[target]
    uri = log_member(
        connection=shipping.family.connection,
        experiment_id=shipping.family.experiment_id,
        run_id=shipping.family.run_id,
        name=shipping.request.spec.registry.model_name or shipping.request.name,
        target=target,
        bundle=bundle,
        params={
            "size_bytes": record["size_bytes"],
            "parameters": chosen["parameters"],
            "average_bits": f"{record['average_bits']:.3f}",
            **chosen["shape"],
        },
        metrics=record["metrics"],
    )
    return Member(
        target=target,
        runtime=_runtime(shipping.request, target),
        logged_model_uri=uri,
        bundle_sha256=bundle.sha256,
        size_bytes=record["size_bytes"],
        parameters=chosen["parameters"],
        average_bits=record["average_bits"],
        shape=ModelShape.model_validate(chosen["shape"]),
        metrics=record["metrics"],
        metric=shipping.inputs.metric,
    )


def _runtime(request: RunRequest, target: str) -> str:
    return next(device.runtime for device in request.spec.device_targets if device.name == target)
