"""A manifest read is a manifest kept: defaults, round trips, digests."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ireko_api.handoff import RunRequest
from ireko_api.spec import CompressionRun, CompressionRunSpec, SupernetStage, TeacherStage
from ireko_api.validation import find_problems, parse

Manifest = dict[str, Any]
ManifestWith = Callable[[dict[str, Any]], Manifest]
ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_every_example_is_valid(path: Path) -> None:
    assert [find_problems(document) for document in yaml.safe_load_all(path.read_text())] == [[]]


def test_there_are_examples() -> None:
    assert EXAMPLES


def test_a_run_survives_its_own_json(manifest: Manifest) -> None:
    run = parse(manifest)
    assert CompressionRun.model_validate_json(run.model_dump_json(by_alias=True)) == run


def test_a_run_survives_its_own_yaml(manifest: Manifest) -> None:
    run = parse(manifest)
    written = yaml.safe_dump(run.model_dump(mode="json", by_alias=True))
    assert parse(yaml.safe_load(written)) == run


def test_a_spec_survives_the_way_to_the_trainer(manifest: Manifest) -> None:
    spec = parse(manifest).spec
    request = RunRequest(
        name="a", uid="b", spec_digest=spec.digest(), spec=spec, base_dir="/", storage="s", tracking_uri="t"
    )
    assert RunRequest.model_validate_json(request.to_json()).spec.digest() == request.spec_digest


def test_a_spec_cannot_be_changed(manifest: Manifest) -> None:
    spec = parse(manifest).spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 1  # type: ignore[misc]


def test_null_is_the_same_as_not_given(manifest: Manifest, manifest_with: ManifestWith) -> None:
    document = yaml.safe_load(
        """
        {teacher.revision: null, seed: null, data.train.limit: null, data.validation: null,
         pipeline.mlfs.recovery: null, pipeline.mlfs.distillation: null, registry.modelName: null,
         compute.resourcesPerWorker: null}
        """
    )
    spelled_out = manifest_with({})
    for path, value in document.items():
        *above, last = path.split(".")
        parent = spelled_out["spec"]
        for key in above:
            parent = parent.setdefault(key, {})
        parent[last] = value
    assert parse(spelled_out) == parse(manifest)


# --- digest ------------------------------------------------------------------------------------


def test_the_digest_is_stable() -> None:
    """Runs are found again by it: a change here makes every unfinished run start afresh."""
    spec = CompressionRunSpec.model_validate(
        {
            "teacher": {"model": "hf://org/name", "task": "text-classification"},
            "data": {"train": {"uri": "a.jsonl", "labelColumn": "label"}},
            "pipeline": {"mlfs": {}, "quantization": {}},
            "deviceTargets": [{"name": "gateway", "constraints": {"maxSizeMiB": 20}}],
        }
    )
    assert spec.digest() == "226249dde50acc0c3b846f54a2a0201cf9095bcf3efd659283783893d9109eaf"


def test_a_delta_that_is_not_materialized_is_the_run_that_it_was_before_it_could_be(
    manifest_with: ManifestWith,
) -> None:
    digests = [
        parse(
            manifest_with({"pipeline.quantization": None, "pipeline.delta": {"rank": 4, **more}})
        ).spec.digest()
        for more in ({}, {"materialize": False}, {"materialize": True})
    ]
    assert digests[0] == digests[1] != digests[2]


def shuffled(data: Any, randomness: random.Random) -> Any:
    if isinstance(data, list):
        return [shuffled(item, randomness) for item in data]
    if isinstance(data, dict):
        keys = list(data)
        randomness.shuffle(keys)
        return {key: shuffled(data[key], randomness) for key in keys}
    return data


@pytest.mark.parametrize("seed", range(3))
def test_the_digest_ignores_the_order_of_fields(manifest: Manifest, seed: int) -> None:
    mixed = shuffled(manifest, random.Random(seed))
    assert parse(mixed).spec.digest() == parse(manifest).spec.digest()


def test_the_digest_ignores_how_numbers_are_spelled(manifest_with: ManifestWith) -> None:
    digests = {
        parse(manifest_with({"pipeline.mlfs.gradientScaling.gamma": gamma})).spec.digest()
        for gamma in (1, 1.0, "1.0", "1e0", "10e-1")
    }
    assert len(digests) == 1


def test_the_digest_ignores_whether_a_default_is_written_down(manifest: Manifest) -> None:
    run = parse(manifest)
    spelled_out = {**manifest, "spec": json.loads(run.spec.canonical_json())}
    assert parse(spelled_out).spec.digest() == run.spec.digest()


@pytest.mark.parametrize(
    "edits",
    [
        {"seed": 1},
        {"teacher.model": "hf://org/other"},
        {"pipeline.quantization.bits": [2, 4]},
        {"pipeline.quantization": None},
        {"deviceTargets.0.name": "phone"},
        {"registry.experiment": "other"},
    ],
    ids=str,
)
def test_the_digest_tells_different_specs_apart(
    manifest: Manifest, manifest_with: ManifestWith, edits: dict[str, Any]
) -> None:
    assert parse(manifest_with(edits)).spec.digest() != parse(manifest).spec.digest()


@pytest.mark.parametrize(
    "edits",
    [
        {"suspend": True},
        {"compute.image": "registry.example/trainer:2"},
        {"compute.resourcesPerWorker": {"cpu": "4", "memory": "8Gi", "gpu": 1}},
        {"compute.threadsPerWorker": 2},
        {"compute.maxAttempts": 9},
        {"compute.ttlSecondsAfterFinished": 60},
        {"compute.storage": {"objectStore": {"uri": "s3://bucket/a"}}},
        {"compute.podTemplate": {"spec": {"affinity": {}}}},
        {"registry.credentialsSecret": "mlflow"},
        {"pipeline.mlfs.gradientCheckpointing": True},
    ],
    ids=str,
)
def test_the_digest_does_not_depend_on_where_and_with_what_the_run_executes(
    manifest: Manifest, manifest_with: ManifestWith, edits: dict[str, Any]
) -> None:
    assert parse(manifest_with(edits)).spec.digest() == parse(manifest).spec.digest()


def test_deltas_need_workers_only_where_they_are_trained(
    manifest: Manifest, manifest_with: ManifestWith
) -> None:
    pipeline = {"delta": {"targetReduction": 0.1}}
    untrained = manifest_with({"pipeline": pipeline, "compute.workers": 2})
    trained = manifest_with(
        {"pipeline": {"delta": {**pipeline["delta"], "recovery": {}}}, "compute.workers": 2}
    )
    assert parse(untrained).spec.training_workers == 0
    assert parse(trained).spec.training_workers == 2


def test_the_digest_depends_on_the_number_of_workers(manifest: Manifest, manifest_with: ManifestWith) -> None:
    """It decides which texts meet in a step."""
    assert parse(manifest_with({"compute.workers": 2})).spec.digest() != parse(manifest).spec.digest()


def test_the_digest_does_not_depend_on_the_name(manifest: Manifest) -> None:
    renamed = {**manifest, "metadata": {"name": "other"}}
    assert parse(renamed).spec.digest() == parse(manifest).spec.digest()


# --- defaults that hang on another field -------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 1800),
        ({"method": "Full"}, 1800),
        ({"method": "LowRank"}, 1800),
        ({"method": "Skip"}, 0),
        ({"steps": 7}, 7),
    ],
    ids=str,
)
def test_stage_0_takes_no_steps_when_it_is_skipped(given: dict[str, Any], steps: int) -> None:
    assert TeacherStage.model_validate(given).steps == steps


@pytest.mark.parametrize(
    ("edits", "percent"),
    [({}, 10), ({"data.holdoutPercent": 20}, 20), ({"data.validation": {"uri": "dev.jsonl"}}, 0)],
    ids=str,
)
def test_nothing_is_held_out_when_there_are_validation_texts(
    manifest_with: ManifestWith, edits: dict[str, Any], percent: int
) -> None:
    assert parse(manifest_with(edits)).spec.data.holdout_percent == percent


# --- what people write -------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["2e-3", "0.002", ".002", "2.0e-3"])
def test_numbers_that_yaml_reads_as_strings_count(spelling: str) -> None:
    read = yaml.safe_load(f"learningRate: {spelling}")
    assert SupernetStage.model_validate(read).learning_rate == pytest.approx(0.002)


def test_python_code_may_use_python_names() -> None:
    assert SupernetStage(learning_rate=0.5, warmup_ratio=0).learning_rate == 0.5


def test_resources_are_numbers_for_programs(manifest_with: ManifestWith) -> None:
    edits = {"compute.resourcesPerWorker": {"cpu": 1.5, "memory": "512Mi"}}
    resources = parse(manifest_with(edits)).spec.compute.resources_per_worker
    assert (resources.cpus, resources.memory_bytes) == (1.5, 512 * 2**20)


def test_bookkeeping_of_the_api_server_is_left_out(manifest: Manifest) -> None:
    manifest["metadata"] |= {
        "uid": "3e0a", "generation": 2, "resourceVersion": "77", "creationTimestamp": "2026-01-31T12:00:00Z",
        "managedFields": [{"manager": "kubectl"}], "namespace": "edge",
    }  # fmt: skip
    metadata = parse(manifest).metadata
    assert (metadata.name, metadata.namespace, metadata.uid, metadata.generation) == (
        "quickstart",
        "edge",
        "3e0a",
        2,
    )


def test_no_default_breaks_a_rule_of_its_own_object() -> None:
    """`default: {}` in the CRD must fill in to something valid."""
    from ireko_api.crd import open_api_schema
    from ireko_api.schema import walk

    empty = [path for path, node in walk(open_api_schema()) if node.get("default") == {}]
    required = {path: node.get("required") for path, node in walk(open_api_schema()) if path in empty}
    assert required
    assert set(map(str, required.values())) == {"None"}
    assert all(re.fullmatch(r"[\w.]+", path) for path in empty)
