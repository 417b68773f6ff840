"""Every rule between fields: broken once in a table, told at the field to mend; what no rule forbids is valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ireko_api.base import Rule, SpecModel
from ireko_api.schema import children
from ireko_api.spec import CompressionRun
from ireko_api.validation import find_problems

Manifest = dict[str, Any]
ManifestWith = Callable[[dict[str, Any]], Manifest]

UNLABELLED = {"data.train.labelColumn": None}
RUNNING_TEXT = {"teacher.task": "text-generation", **UNLABELLED}
EMBEDDINGS = {"teacher.task": "feature-extraction", "pipeline.mlfs.stages": {"teacher": {"method": "Skip"}}}
STAGE_0 = "pipeline.mlfs.stages.teacher"

# Each row: edits that break exactly one rule, the field it names, the beginning of its sentence.
RULES: list[tuple[dict[str, Any], str, str]] = [
    ({"teacher.revision": "main"}, "teacher.revision", "only models from the Hugging Face hub"),
    (
        {"data.validation": {"uri": "a.txt", "format": "text", "labelColumn": "b"}},
        "data.validation.format",
        "format text has one text per line",
    ),
    (
        {"data.calibration": {"uri": "a.txt", "format": "text", "textColumns": ["a", "b"]}},
        "data.calibration.format",
        "format text has one text per line",
    ),
    (
        {"data.validation": {"uri": "a"}, "data.holdoutPercent": 10},
        "data.holdoutPercent",
        "validation and holdoutPercent are two ways",
    ),
    ({"data.holdoutPercent": 0}, "data.holdoutPercent", "without rows to judge by"),
    (
        {"data.labels": ["a", "b"], "data.problemType": "Regression"},
        "data.labels",
        "a regression predicts numbers",
    ),
    ({"data.labels": ["a", "b", "a"]}, "data.labels", "label names must differ"),
    (
        {"pipeline.mlfs.searchSpace.hidden": [0.75, 0.5]},
        "pipeline.mlfs.searchSpace.hidden",
        "hidden must start with 1",
    ),
    (
        {"pipeline.mlfs.searchSpace.hidden": [1, 0.5, 0.75]},
        "pipeline.mlfs.searchSpace.hidden",
        "hidden must start",
    ),
    (
        {"pipeline.mlfs.searchSpace.hidden": [1, 0.5, 0.5]},
        "pipeline.mlfs.searchSpace.hidden",
        "hidden must start",
    ),
    (
        {"pipeline.mlfs.searchSpace.intermediate": [0.5]},
        "pipeline.mlfs.searchSpace.intermediate",
        "intermediate must",
    ),
    (
        {"pipeline.mlfs.searchSpace.layers": [1, 1]},
        "pipeline.mlfs.searchSpace.layers",
        "layers must start with 1",
    ),
    ({f"{STAGE_0}": {"method": "Skip", "steps": 5}}, f"{STAGE_0}.steps", "method Skip trains nothing"),
    ({f"{STAGE_0}": {"method": "LowRank", "steps": 0}}, f"{STAGE_0}.steps", "methods Full and LowRank need"),
    (
        {"pipeline.quantization.bits": [4, 2]},
        "pipeline.quantization.bits",
        "bits must be different and ascending",
    ),
    (
        {"pipeline.quantization.bits": [2, 2]},
        "pipeline.quantization.bits",
        "bits must be different and ascending",
    ),
    (
        {"pipeline.quantization": {"bits": [4, 8], "averageBits": 3}},
        "pipeline.quantization.averageBits",
        "averageBits must lie between",
    ),
    ({"pipeline.delta": {}}, "pipeline.delta.targetReduction", "exactly one of targetReduction and rank"),
    (
        {"pipeline.delta": {"rank": 4, "sharing": "Basis", "coefficients": "One"}},
        "pipeline.delta.coefficients",
        "sharing Basis has no bases",
    ),
    ({"pipeline": {}}, "pipeline.mlfs", "at least one of mlfs, delta and quantization"),
    (
        {"pipeline.delta": {"rank": 4, "materialize": True}},
        "pipeline.delta.materialize",
        "a member that is multiplied out again takes as many bits",
    ),
    ({**UNLABELLED, "teacher.task": "feature-extraction"}, f"{STAGE_0}.method", "feature-extraction without"),
    (UNLABELLED, f"{STAGE_0}.method", "text-classification fine-tunes the teacher on labels"),
    (
        {**UNLABELLED, **EMBEDDINGS, "pipeline.mlfs.distillation.teacher": "InPlace"},
        "pipeline.mlfs.distillation.teacher",
        "InPlace distillation trains the largest subnet on labels",
    ),
    (
        {"deviceTargets": [{"name": "a", "constraints": {"maxSizeMiB": size}} for size in (1, 2)]},
        "deviceTargets",
        "names of deviceTargets must differ",
    ),
    (
        {"deviceTargets": [{"name": "v1", "constraints": {"maxSizeMiB": 1}}]},
        "deviceTargets[0].name",
        "names of deviceTargets become aliases in MLflow",
    ),
    (
        {**EMBEDDINGS, "evaluation.metric": "accuracy"},
        "evaluation.metric",
        "feature-extraction cannot be judged by",
    ),
    ({"evaluation.metric": "neighbours"}, "evaluation.metric", "text-classification cannot be judged by"),
    (
        {**RUNNING_TEXT, "evaluation.multipleChoice": [{"benchmark": "mmlu", "uri": uri} for uri in "ab"]},
        "evaluation.multipleChoice",
        "a benchmark is reported under its name",
    ),
    (
        {"evaluation.multipleChoice": [{"benchmark": "mmlu", "uri": "a"}]},
        "evaluation.multipleChoice",
        "only a model that generates text",
    ),
    ({**RUNNING_TEXT, "evaluation.metric": "f1"}, "evaluation.metric", "text-generation cannot be judged by"),
    (
        {**RUNNING_TEXT, "data.calibration": {"uri": "a", "textColumns": ["a", "b"]}},
        "data.train",
        "text-generation learns from running text",
    ),
    (
        {**RUNNING_TEXT, "data.labels": ["a", "b"]},
        "data.labels",
        "text-generation foresees tokens, and these names of classes",
    ),
    (
        {**RUNNING_TEXT, "data.problemType": "SingleLabel"},
        "data.problemType",
        "text-generation foresees tokens, neither a class nor a number",
    ),
    ({"compute.maxMemory": "1Gi"}, "compute.maxMemory", "maxMemory is what a worker's memory may grow to"),
    ({"compute.storage": {}}, "compute.storage.persistentVolumeClaim", "name exactly one place"),
    (
        {"compute.storage": {"objectStore": {"uri": "s3://a"}, "persistentVolumeClaim": {"claimName": "a"}}},
        "compute.storage.persistentVolumeClaim",
        "name exactly one place",
    ),
    (
        {"compute.tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "compute.tolerations[0].value",
        "a toleration whose operator is Exists",
    ),
    ({"compute.tolerations": [{}]}, "compute.tolerations[0].operator", "a toleration of every taint"),
]


@pytest.mark.parametrize(
    ("edits", "path", "beginning"), RULES, ids=[f"{number}-{row[1]}" for number, row in enumerate(RULES)]
)
def test_a_broken_rule_is_told_at_the_field_to_mend(
    manifest_with: ManifestWith, edits: dict[str, Any], path: str, beginning: str
) -> None:
    (problem,) = find_problems(manifest_with(edits))
    assert problem.path == f"spec.{path}"
    assert problem.message.startswith(beginning)


def models(model: type[SpecModel]) -> Iterator[type[SpecModel]]:
    yield model
    for _, child, _ in children(model):
        yield from models(child)


def test_every_rule_is_broken_once_in_the_table_above() -> None:
    rules: list[Rule] = [rule for model in dict.fromkeys(models(CompressionRun)) for rule in model.RULES]
    told = [beginning for _, _, beginning in RULES]
    untold = [rule.message for rule in rules if not any(rule.message.startswith(text) for text in told)]
    assert untold == []


@pytest.mark.parametrize(
    "edits",
    [
        {"teacher": {"model": "hf://org/name", "revision": "main", "task": "text-classification"}},
        {"data.validation": {"uri": "a"}, "data.holdoutPercent": 0},
        {"data.train": {"uri": "a.txt", "format": "text"}, **EMBEDDINGS},
        {**UNLABELLED, "pipeline.mlfs": None},
        {**UNLABELLED, "pipeline.mlfs.stages": {"teacher": {"method": "Skip"}}},
        {"pipeline.mlfs.distillation.teacher": "InPlace"},
        {"pipeline.mlfs.searchSpace": {"hidden": [1], "layers": [1.0, 0.5]}},
        {"pipeline.quantization": {"bits": [4], "averageBits": 4}},
        {"pipeline.mlfs": None},
        {"pipeline.quantization": None},
        {"pipeline.quantization": None, "pipeline.delta": {"rank": 4, "materialize": True}},
        {"data.labels": ["a", "b"], "data.problemType": "SingleLabel"},
        {**EMBEDDINGS, "evaluation.metric": "neighbours"},
        {**RUNNING_TEXT, "evaluation.metric": "likelihood"},
        {**RUNNING_TEXT, "evaluation.multipleChoice": [{"benchmark": "mmlu", "uri": "a"}]},
        {**RUNNING_TEXT, "pipeline.mlfs.distillation.teacher": "InPlace"},
        {"evaluation.metric": "agreement"},
        {"compute.maxMemory": "2048Mi"},
        {"compute.maxMemory": "4e9", "compute.resourcesPerWorker": {"memory": 2000000000}},
        {"compute.storage": {"objectStore": {"uri": "s3://bucket/prefix", "credentialsSecret": "a.b"}}},
        {"compute.tolerations": [{"operator": "Exists"}, {"key": "nvidia.com/gpu", "effect": "NoSchedule"}]},
    ],
    ids=str,
)
def test_what_no_rule_forbids_is_valid(manifest_with: ManifestWith, edits: dict[str, Any]) -> None:
    assert find_problems(manifest_with(edits)) == []
