"""From the records of the stages to the plain numbers that the report shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ireko_api.handoff import Family, Member, RunRequest
from ireko_trainer.pipeline.family import Trained
from ireko_trainer.pipeline.palette import shape_from
from ireko_trainer.report import (
    BaselineEntry,
    CandidateEntry,
    Curve,
    Importance,
    MatrixBits,
    MemberEntry,
    ReportContent,
    TeacherEntry,
)
from ireko_trainer.search.limits import MEBIBYTE
from ireko_trainer.tracking.connection import redacted
from ireko_trainer.tracking.journal import curves
from ireko_trainer.tracking.lineage import versions

Records = Mapping[str, Mapping[str, Any]]
"""Device target → record of its quantize stage."""


def report_content(
    *,
    request: RunRequest,
    metric: str,
    family: Family,
    trained: Trained,
    quantized: Records,
    data_digests: Mapping[str, str],
    journals: Mapping[str, Path],
) -> ReportContent:
    """Everything on the page of one run; `journals` are the files with the metrics of the training stages."""
    return ReportContent(
        name=request.name,
        model_name=request.spec.registry.model_name or request.name,
        metric=metric,
        teacher=TeacherEntry(
            quality=family.teacher.metrics[metric],
            size_bytes=family.teacher.size_bytes,
            parameters=family.teacher.parameters,
        ),
        members=tuple(
            _member(request, member, trained=trained, record=quantized[member.target], metric=metric)
            for member in family.members
        ),
        candidates=tuple(_candidates(trained)),
        baselines=tuple(_baselines(quantized, metric=metric)),
        curves=tuple(
            Curve(stage=_stage_title(stage, trained), points=tuple(points))
            for stage, journal in journals.items()
            if (points := curves(journal.parent))
        ),
        importance=tuple(_importance(quantized)),
        notes=tuple(_delta_notes(request, trained)),
        lineage=tuple(_lineage(request, family, data_digests)),
        tracking_uri=redacted(request.tracking_uri),
        task=request.spec.teacher.task,
        created=datetime.now(tz=UTC).date(),
    )


def _stage_title(stage: str, trained: Trained) -> str:
    """`widths` as it is; a member's own training by the targets that it ships to, which are shorter than its shape."""
    for prefix, title in (("member", "recovery"), ("delta", "deltas")):
        targets = [
            target
            for target, member in trained.members.items()
            if stage == f"{prefix}-{shape_from(member['shape'])}"
        ]
        if targets:
            return f"{title}: {', '.join(targets)}"
    return stage


def _member(
    request: RunRequest, member: Member, *, trained: Trained, record: Mapping[str, Any], metric: str
) -> MemberEntry:
    target = next(target for target in request.spec.device_targets if target.name == member.target)
    floors = [] if target.constraints.min_quality is None else [target.constraints.min_quality]
    if target.constraints.min_quality_ratio is not None:
        floors.append(target.constraints.min_quality_ratio * trained.teacher["metrics"][metric])
    return MemberEntry(
        target=member.target,
        quality=member.metrics[metric],
        size_bytes=member.size_bytes,
        parameters=member.parameters,
        average_bits=member.average_bits,
        hidden=member.shape.hidden,
        heads=member.shape.heads,
        intermediate=member.shape.intermediate,
        layers=member.shape.layers,
        max_size_bytes=int(target.constraints.max_size_mib * MEBIBYTE),
        min_quality=max(floors, default=None),
        metrics=member.metrics,
        bits=tuple(_matrix_bits(record)),
    )


def _candidates(trained: Trained) -> Iterator[CandidateEntry]:
    for candidate in trained.candidates:
        target = candidate["target"]
        chosen = target is not None and trained.members[target]["shape"] == candidate["shape"]
        bits = candidate["average_bits"]
        yield CandidateEntry(
            label=f"{shape_from(candidate['shape'])}" + ("" if target is None else f" for {target}"),
            size_bytes=candidate["size_bytes"],
            quality=candidate["quality"],
            average_bits=None if target is None else bits,
            chosen=chosen,
        )


def _baselines(quantized: Records, *, metric: str) -> Iterator[BaselineEntry]:
    for target, record in quantized.items():
        for baseline in record["baselines"]:
            yield BaselineEntry(
                label=f"{target}, bits by {baseline['importance']}",
                size_bytes=baseline["size_bytes"],
                quality=baseline["metrics"][metric],
            )


def _importance(quantized: Records) -> Iterator[Importance]:
    for target, record in quantized.items():
        yield Importance(method="LIM", model=target, scores=_by_layer(record["lim"]))
        yield Importance(method="ZD", model=target, scores=_by_layer(record["zd"]))
        if record["sensitivity"]:
            yield Importance(method="Sensitivity", model=target, scores=_by_layer(record["sensitivity"]))


def _by_layer(scores: Mapping[str, float]) -> dict[str, float]:
    return {f"layer {index}": value for index, value in enumerate(scores.values())}


def _matrix_bits(record: Mapping[str, Any]) -> Iterator[MatrixBits]:
    blocks = list(record["block_bits"])
    for module, bits in record["module_bits"].items():
        block = next((name for name in blocks if module.startswith(f"{name}.")), None)
        if block is not None:
            matrix = module.removeprefix(f"{block}.")
            yield MatrixBits(block=f"layer {blocks.index(block)}", matrix=matrix, bits=bits)
        else:
            place = "embeddings" if "embed" in module or module.endswith(("wte", "wpe")) else "head"
            yield MatrixBits(block=place, matrix=module.rpartition(".")[2], bits=bits)


def _delta_notes(request: RunRequest, trained: Trained) -> Iterator[str]:
    wanted = request.spec.pipeline.delta
    whole = wanted is not None and wanted.materialize
    for target, member in trained.members.items():
        if "delta" not in member:
            continue
        delta = member["delta"]
        note = (
            f"{target}: {delta['factored']} matrices of the blocks are factored, {delta['following']} of them added to "
            f"a shared base; that saves {delta['reduction']:.1%} of the weights in the blocks"
            + (", and materialize stores them whole all the same" if whole else "")
        )
        yield f"{note}. S{delta['warning'][1:]}." if delta["warning"] else f"{note}."


def _lineage(
    request: RunRequest, family: Family, data_digests: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    yield "run", request.uid
    yield "MLflow run", family.run_id
    yield "spec sha256", request.spec_digest
    yield "teacher", request.spec.teacher.model
    yield "teacher sha256", family.teacher.sha256
    for split, digest in data_digests.items():
        yield f"{split} data sha256", digest
    yield "seed", str(request.spec.seed)
    yield from versions().items()
