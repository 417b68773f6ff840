"""A run from the manifest to models that load, by the command line alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tiny import DEPTHS_STEPS, NAME, RECOVERY_STEPS, TARGETS, TEACHER_STEPS, WIDTHS_STEPS, Undisturbed

from ireko_trainer.serving import verify_bundle

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def parent(undisturbed: Undisturbed) -> Any:
    """The parent run in MLflow."""
    return undisturbed.case.client.get_run(undisturbed.ran.result["runId"])


@pytest.fixture(scope="module")
def nested(undisturbed: Undisturbed, parent: Any) -> dict[str, Any]:
    """The nested runs of the stages, by name."""
    runs = undisturbed.case.client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert len({run.info.run_name for run in runs}) == len(runs), "one run for each stage"
    return {run.info.run_name: run for run in runs}


def test_the_result_is_one_json_object_of_the_documented_shape(undisturbed: Undisturbed) -> None:
    result = undisturbed.ran.result

    assert list(result) == ["name", "phase", "trackingUri", "runId", "teacher", "members", "report"]
    assert (result["name"], result["phase"]) == (NAME, "Succeeded")
    assert result["trackingUri"] == undisturbed.case.tracking_uri
    assert set(result["teacher"]) == {"metrics", "sizeBytes"}
    assert [member["target"] for member in result["members"]] == list(TARGETS)
    for member in result["members"]:
        assert list(member) == [
            *("target", "modelUri", "version", "sizeBytes", "parameters", "averageBits", "metrics")
        ]
        assert member["modelUri"] == f"models:/{NAME}@{member['target']}"


def test_teacher_and_members_have_learned_the_task(undisturbed: Undisturbed) -> None:
    result = undisturbed.ran.result

    assert result["teacher"]["metrics"]["accuracy"] > 0.85
    for member in result["members"]:
        assert member["metrics"]["accuracy"] > 0.85
        assert member["sizeBytes"] < result["teacher"]["sizeBytes"] / 4
        assert member["averageBits"] < 9


@pytest.mark.parametrize("target", TARGETS)
def test_an_alias_leads_to_verified_bytes_within_the_limit(undisturbed: Undisturbed, target: str) -> None:
    case = undisturbed.case
    mlflow.set_tracking_uri(case.tracking_uri)
    member = next(member for member in undisturbed.ran.result["members"] if member["target"] == target)

    downloaded = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@{target}"))

    bundle = verify_bundle(downloaded / "artifacts" / target)
    version = case.client.get_model_version_by_alias(NAME, target)
    assert bundle.sha256 == version.tags["bundle.sha256"]
    weights = bundle.directory / "checkpoint" / "model.safetensors"
    assert weights.stat().st_size == member["sizeBytes"] <= TARGETS[target] * MEBIBYTE
    assert "quantization_config" in json.loads((bundle.directory / "checkpoint" / "config.json").read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_a_member_predicts_what_the_words_say(undisturbed: Undisturbed, target: str) -> None:
    mlflow.set_tracking_uri(undisturbed.case.tracking_uri)

    model = mlflow.pyfunc.load_model(f"models:/{NAME}@{target}")

    answers = model.predict(["w1 w4 w7 w100", "w11 w15 w19 w100"])
    assert [answer["label"] for answer in answers] == ["neg", "pos"]
    assert all(0.5 < answer["score"] <= 1 for answer in answers)


@pytest.mark.parametrize("target", TARGETS)
def test_a_version_says_what_it_is(undisturbed: Undisturbed, target: str) -> None:
    tags = undisturbed.case.client.get_model_version_by_alias(NAME, target).tags
    member = next(member for member in undisturbed.ran.result["members"] if member["target"] == target)

    assert tags["family"] == NAME
    assert tags["family.member"] == tags["device.target"] == target
    assert tags[f"device.{target}"] == "true"
    assert tags["ireko.run.id"] == undisturbed.ran.result["runId"]
    assert tags["selected.by"] == "accuracy"
    assert float(tags["quality.accuracy"]) == member["metrics"]["accuracy"]
    assert int(tags["size.bytes"]) == member["sizeBytes"]


def test_the_report_is_where_the_result_says(undisturbed: Undisturbed) -> None:
    report = Path(undisturbed.ran.result["report"]).read_text()

    assert "<html" in report
    for target in TARGETS:
        assert target in report


def test_the_parent_run_tells_where_everything_came_from(undisturbed: Undisturbed, parent: Any) -> None:
    tags, parameters = parent.data.tags, parent.data.params

    assert parent.info.status == "FINISHED"
    assert tags["ireko.run.name"] == NAME
    assert tags["ireko.seed"] == "0"
    assert len(tags["ireko.teacher.sha256"]) == 64
    assert {len(tags[f"ireko.data.{split}.sha256"]) for split in ("train", "validation", "calibration")} == {
        64
    }
    assert tags["ireko.version.torch"]
    assert json.loads(tags["ireko.progress"])["percent"] == 100
    assert "ireko.failure" not in tags
    assert parameters["pipeline.mlfs.stages.widths.steps"] == str(WIDTHS_STEPS)
    assert parameters["deviceTargets.small.constraints.maxSizeMiB"] == str(TARGETS["small"])


def test_every_stage_has_a_finished_run_and_training_stages_their_curves(
    undisturbed: Undisturbed, nested: dict[str, Any]
) -> None:
    assert {run.info.status for run in nested.values()} == {"FINISHED"}
    finished = {path.name.rpartition("-")[0] for path in undisturbed.case.stages().values()}
    assert finished == set(nested)
    assert {"teacher", "order", "palette", "widths", "depths", "select", "publish"} < finished
    for stage, steps in {"teacher": TEACHER_STEPS, "widths": WIDTHS_STEPS, "depths": DEPTHS_STEPS}.items():
        history = undisturbed.case.client.get_metric_history(nested[stage].info.run_id, "loss")
        assert [reading.step for reading in history] == list(range(1, steps + 1)), stage
    members = [run for name, run in nested.items() if name.startswith("member-")]
    assert members
    for run in members:
        history = undisturbed.case.client.get_metric_history(run.info.run_id, "loss")
        assert len(history) == RECOVERY_STEPS


def test_the_machine_was_watched_while_it_trained(nested: dict[str, Any]) -> None:
    watched = {
        name for name, run in nested.items() if "system/cpu_utilization_percentage" in run.data.metrics
    }

    assert {"widths", "depths"} & watched


def test_the_same_manifest_again_trains_nothing_and_registers_nothing(undisturbed: Undisturbed) -> None:
    case = undisturbed.case
    before = {path: path.stat().st_mtime_ns for path in case.storage.rglob("*")}

    again = case.run()

    assert again.exit_status == 0, again.stderr
    assert again.result == undisturbed.ran.result
    assert case.registry() == undisturbed.registry
    assert case.log.read_text().count("--- attempt") == 1, "no trainer was started"
    assert {path: path.stat().st_mtime_ns for path in case.storage.rglob("*")} == before
