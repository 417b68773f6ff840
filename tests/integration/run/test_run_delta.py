"""A run that factors its member, from the manifest to a model that shares its weights again."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors import safe_open
from tiny import NAME, MakeCase, Undisturbed, specification
from transformers import AutoModel

from ireko_trainer.serving import verify_bundle

TARGET, MAX_SIZE_MIB = "packed", 0.14
"""At 4 bits the teacher takes 0.16 MiB."""
RECOVERY_STEPS = 20


@pytest.fixture(scope="module")
def factored(make_case: MakeCase) -> Undisturbed:
    case = make_case()
    spec = specification()
    spec["pipeline"]["mlfs"] |= {
        "searchSpace": {"hidden": [1], "intermediate": [1], "layers": [1]},
        "recovery": None,
    }
    spec["pipeline"]["delta"] = {
        "targetReduction": 0.3,
        "recovery": {"steps": RECOVERY_STEPS, "batchSize": 16, "replacement": "Progressive"},
    }
    spec["pipeline"]["quantization"] = {"importance": "Uniform", "bits": [4], "method": "RTN"}
    spec["deviceTargets"] = [{"name": TARGET, "constraints": {"maxSizeMiB": MAX_SIZE_MIB}}]
    case.write_manifest(spec)
    ran = case.run()
    assert ran.exit_status == 0, ran.stderr + case.log_tail()
    return Undisturbed(case=case, ran=ran, registry=case.registry())


def test_the_file_that_ships_is_the_size_that_the_result_says(factored: Undisturbed) -> None:
    mlflow.set_tracking_uri(factored.case.tracking_uri)
    (member,) = factored.ran.result["members"]

    downloaded = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@{TARGET}"))

    checkpoint = verify_bundle(downloaded / "artifacts" / TARGET).directory / "checkpoint"
    weights = checkpoint / "delta.safetensors"
    assert weights.stat().st_size == member["sizeBytes"] <= MAX_SIZE_MIB * 2**20
    layers = json.loads((checkpoint / "delta.json").read_text())["layers"]
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
    assert layers
    assert all(f"{name}.outer.weight_packed" in stored for name in layers)
    assert all(f"{name}.weight_packed" not in stored for name in layers)


def test_the_member_loads_with_its_layers_factored_and_predicts(factored: Undisturbed) -> None:
    mlflow.set_tracking_uri(factored.case.tracking_uri)

    model = mlflow.pyfunc.load_model(f"models:/{NAME}@{TARGET}")

    kinds = {type(module).__name__ for module in model.unwrap_python_model().model.modules()}
    assert "DeltaLinear" in kinds
    answers = model.predict(["w1 w4 w7 w100", "w11 w15 w19 w100"])
    assert [answer["label"] for answer in answers] == ["neg", "pos"]


def test_the_factors_were_trained_and_the_report_tells_of_them(factored: Undisturbed) -> None:
    (stage,) = (path for name, path in factored.case.stages().items() if name.startswith("delta-"))
    losses = [
        json.loads(line)["metrics"]["loss"] for line in (stage / "metrics.jsonl").read_text().splitlines()
    ]
    report = Path(factored.ran.result["report"]).read_text()

    assert len(losses) == RECOVERY_STEPS
    assert "matrices of the blocks are factored" in report
    assert "Sharing is only nominal" in report


def test_a_materialised_member_is_a_plain_checkpoint_of_the_size_that_the_result_says(
    make_case: MakeCase,
) -> None:
    case = make_case()
    spec = specification()
    spec["teacher"]["task"] = "feature-extraction"
    spec["data"] = {"train": {"uri": "train.jsonl", "maxLength": 32}}
    spec["pipeline"] = {"delta": {"targetReduction": 0.3, "materialize": True}}
    spec["deviceTargets"] = [{"name": TARGET, "constraints": {"maxSizeMiB": 1}}]
    case.write_manifest(spec)

    ran = case.run()

    assert ran.exit_status == 0, ran.stderr + case.log_tail()
    mlflow.set_tracking_uri(case.tracking_uri)
    (member,) = ran.result["members"]
    downloaded = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@{TARGET}"))
    checkpoint = verify_bundle(downloaded / "artifacts" / TARGET).directory / "checkpoint"
    assert not (checkpoint / "delta.json").exists()
    plain, found = AutoModel.from_pretrained(
        checkpoint, add_pooling_layer=False, output_loading_info=True, dtype="auto"
    )
    assert not any(found.values()), found
    numbers = sum(parameter.numel() for parameter in plain.parameters())
    assert numbers == member["parameters"]
    size = (checkpoint / "model.safetensors").stat().st_size
    assert 2 * numbers < size == member["sizeBytes"] < 2.1 * numbers
    # The matrices are the products of what was factored, and no others.
    ranks = [
        (weight.shape, int(torch.linalg.matrix_rank(weight.float(), rtol=1e-2)))
        for name, weight in plain.named_parameters()
        if "layer" in name and weight.dim() == 2 and weight.shape[0] != weight.shape[1]
    ]
    assert any(rank < min(shape) for shape, rank in ranks), ranks
    assert "materialize stores them whole all the same" in Path(ran.result["report"]).read_text()
