"""What a run leaves in MLflow, on SQLite and on a real server, through crashes and outages."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from ireko_api.handoff import (
    TAG_FAILURE,
    TAG_PROGRESS,
    TAG_SPEC_DIGEST,
    TAG_STAGE,
    TAG_UID,
    Failure,
    Family,
    Progress,
    RunRequest,
    TeacherSummary,
)
from ireko_api.spec import CompressionRunSpec
from ireko_trainer.errors import InterruptedRunError
from ireko_trainer.tracking.connection import TrackingUnreachableError
from ireko_trainer.tracking.journal import MetricsJournal, readings
from ireko_trainer.tracking.runs import FamilyRun

if TYPE_CHECKING:
    from conftest import MlflowServer

SPEC = {
    "teacher": {"model": "file://teacher", "task": "text-classification"},
    "data": {"train": {"uri": "train.jsonl", "textColumns": ["sentence"], "labelColumn": "label"}},
    "pipeline": {"mlfs": {"rank": 4}},
    "deviceTargets": [{"name": "gateway", "constraints": {"maxSizeMiB": 20}}],
}


def request(
    uri: str, directory: Path, *, uid: str = "u-1", digest: str = "d1", attempt: int = 1
) -> RunRequest:
    return RunRequest(
        name="sentiment",
        uid=uid,
        spec_digest=digest,
        spec=CompressionRunSpec.model_validate(SPEC),
        base_dir=str(directory),
        storage=str(directory / "storage"),
        tracking_uri=uri,
        artifact_location=str(directory / "artifacts") if uri.startswith("sqlite") else None,
        attempt=attempt,
    )


def progress(percent: int) -> Progress:
    return Progress(
        stage="widths", stage_index=1, stage_count=4, step=percent, total_steps=100, percent=percent,
        updated_at=datetime.now(tz=UTC),
    )  # fmt: skip


def family(run: FamilyRun) -> Family:
    teacher = TeacherSummary(
        metrics={"accuracy": 0.91}, size_bytes=90_000_000, parameters=22_000_000, sha256="ab"
    )
    return Family(
        name="sentiment", uid="u-1", spec_digest="d1", run_id=run.run_id, teacher=teacher, members=(),
        report="report/index.html",
    )  # fmt: skip


def stage_directory(parent: Path, name: str = "widths") -> Path:
    directory = parent / "storage" / "stages" / f"{name}-k1.partial"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def train(
    run: FamilyRun, directory: Path, *, steps: range, meanwhile: Callable[[], None] = lambda: None
) -> str:
    """Work through a stage whose loss at a step is one over the step; `meanwhile` comes first."""
    with run.stage(name="widths", key="k1", directory=directory) as stage:
        meanwhile()
        for step in steps:
            stage.journal.append(step=step, metrics={"loss": 1 / step})
    return stage.run_id


def loss_curve(steps: range) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in steps]


def interrupt() -> None:
    raise InterruptedRunError


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, metric))


def eventually(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)


def nested_runs(uri: str, run: FamilyRun) -> list[Any]:
    return list(
        MlflowClient(uri).search_runs([run.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'")
    )


def close(run: FamilyRun) -> None:
    run.fail(Failure(reason="Interrupted", message="end of the test"))


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return str(request.getfixturevalue("mlflow_sqlite_uri"))
    return str(request.getfixturevalue("mlflow_server").uri)


def test_a_finished_run_holds_its_parameters_curves_report_and_family(uri: str, tmp_path: Path) -> None:
    run = FamilyRun.open(request(uri, tmp_path, uid=f"finished-{tmp_path.name}"))
    with run.stage(name="widths", key="k1", directory=stage_directory(tmp_path)) as stage:
        for step in range(1, 51):
            stage.journal.append(step=step, metrics={"loss": 1 / step})
        stage.log_params({"steps": 50})
    run.progress(progress(100))
    run.log_summary({"teacher/accuracy": 0.91})
    report = tmp_path / "report"
    report.mkdir()
    (report / "index.html").write_text("<p>report</p>")
    run.finish(family=family(run), report_directory=report)

    client = MlflowClient(uri)
    parent = client.get_run(run.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags[TAG_SPEC_DIGEST] == "d1"
    assert parent.data.params["pipeline.mlfs.rank"] == "4"
    assert parent.data.metrics == {"teacher/accuracy": 0.91}
    assert json.loads(parent.data.tags[TAG_PROGRESS])["percent"] == 100
    assert {file.path for file in client.list_artifacts(run.run_id)} == {"family.json", "report"}
    downloaded = client.download_artifacts(run.run_id, "family.json", str(tmp_path))
    assert Family.model_validate_json(Path(downloaded).read_text()) == family(run)

    (nested,) = nested_runs(uri, run)
    assert nested.info.status == "FINISHED"
    assert nested.data.tags[TAG_STAGE] == "widths"
    assert TAG_UID not in nested.data.tags, "a search for the parent must not find its stages"
    assert nested.data.params["steps"] == "50"
    assert history(uri, nested.info.run_id, "loss") == loss_curve(range(1, 51))


def test_a_second_attempt_finds_the_runs_and_repeats_nothing(uri: str, tmp_path: Path) -> None:
    directory, uid = stage_directory(tmp_path), f"resumed-{tmp_path.name}"
    first = FamilyRun.open(request(uri, tmp_path, uid=uid))
    stage_run = train(first, directory, steps=range(1, 31))
    with pytest.raises(InterruptedRunError):
        train(first, directory, steps=range(1, 1), meanwhile=interrupt)
    close(first)
    client = MlflowClient(uri)
    assert client.get_run(stage_run).info.status == "KILLED"
    assert client.get_run(first.run_id).info.status == "KILLED"

    second = FamilyRun.open(request(uri, tmp_path, uid=uid, attempt=2))
    assert second.run_id == first.run_id
    assert TAG_FAILURE not in client.get_run(second.run_id).data.tags
    assert train(second, directory, steps=range(21, 41)) == stage_run
    close(second)
    assert history(uri, stage_run, "loss") == loss_curve(range(1, 41))


def test_a_failed_run_says_why_and_is_failed(uri: str, tmp_path: Path) -> None:
    run = FamilyRun.open(request(uri, tmp_path, uid=f"failed-{tmp_path.name}"))
    with (
        pytest.raises(ZeroDivisionError),
        run.stage(name="widths", key="k1", directory=stage_directory(tmp_path)) as stage,
    ):
        raise ZeroDivisionError
    failure = Failure(reason="Diverged", message="loss is NaN at step 7 «" + "ä" * 9000 + "»", stage="widths")
    assert run.fail(failure)
    client = MlflowClient(uri)
    assert client.get_run(stage.run_id).info.status == "FAILED"
    parent = client.get_run(run.run_id)
    assert parent.info.status == "FAILED"
    told = Failure.model_validate_json(parent.data.tags[TAG_FAILURE])
    assert told.reason == "Diverged"
    assert told.message.startswith("loss is NaN at step 7")


def test_progress_and_curves_are_seen_while_the_stage_works(mlflow_sqlite_uri: str, tmp_path: Path) -> None:
    run = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path))
    client = MlflowClient(mlflow_sqlite_uri)
    with run.stage(name="widths", key="k1", directory=stage_directory(tmp_path)) as stage:
        stage.journal.append(step=1, metrics={"loss": 1.0})
        run.progress(progress(10))
        run.progress(progress(11))
        eventually(lambda: '"percent":11' in client.get_run(run.run_id).data.tags.get(TAG_PROGRESS, ""))
        eventually(lambda: history(mlflow_sqlite_uri, stage.run_id, "loss") == [(1, 1.0)])
    close(run)


def test_a_closed_run_has_sent_its_last_progress_and_goes_on(mlflow_sqlite_uri: str, tmp_path: Path) -> None:
    worker = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path))
    worker.progress(progress(42))
    worker.close()
    run = MlflowClient(mlflow_sqlite_uri).get_run(worker.run_id)
    assert json.loads(run.data.tags[TAG_PROGRESS])["percent"] == 42
    assert run.info.status == "RUNNING"


def test_a_stage_that_trains_in_another_process_is_followed_through_its_journal(
    mlflow_sqlite_uri: str, tmp_path: Path
) -> None:
    directory = stage_directory(tmp_path)
    run = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path))
    with (
        run.stage(name="widths", key="k1", directory=directory) as stage,
        MetricsJournal(directory) as worker,
    ):
        worker.append(step=1, metrics={"loss": 1.0})
    close(run)
    assert history(mlflow_sqlite_uri, stage.run_id, "loss") == [(1, 1.0)]


def test_a_crash_after_sending_and_before_noting_it_doubles_nothing(
    mlflow_sqlite_uri: str, tmp_path: Path
) -> None:
    directory = stage_directory(tmp_path)
    run = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path))
    stage = run.open_stage(name="widths", key="k1", directory=directory)
    for step in range(1, 2501):
        stage.journal.append(step=step, metrics={"loss": 1 / step})
    assert stage.send() == 2500
    (directory / "tracking.json").unlink()
    assert stage.send() == 2500
    close(run)
    assert history(mlflow_sqlite_uri, stage.run_id, "loss") == loss_curve(range(1, 2501))


def test_a_stage_of_an_earlier_spec_is_taken_over_with_a_pointer_to_its_run(
    mlflow_sqlite_uri: str, tmp_path: Path
) -> None:
    directory = stage_directory(tmp_path)
    first = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path, digest="d1"))
    with first.stage(name="teacher", key="k1", directory=directory) as trained:
        trained.journal.append(step=1, metrics={"loss": 1.0})
    close(first)
    second = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path, digest="d2"))
    taken = second.reuse_stage(name="teacher", key="k1", directory=directory)
    assert second.reuse_stage(name="teacher", key="k1", directory=directory) == taken
    close(second)
    assert second.run_id != first.run_id
    run = MlflowClient(mlflow_sqlite_uri).get_run(taken)
    assert run.info.status == "FINISHED"
    assert run.data.tags["ireko.stage.source_run"] == trained.run_id
    assert run.data.tags["mlflow.parentRunId"] == second.run_id


def test_a_stage_that_this_run_finished_keeps_its_run(mlflow_sqlite_uri: str, tmp_path: Path) -> None:
    directory = stage_directory(tmp_path)
    run = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path))
    with run.stage(name="teacher", key="k1", directory=directory) as trained:
        trained.journal.append(step=1, metrics={"loss": 1.0})
    assert run.reuse_stage(name="teacher", key="k1", directory=directory) == trained.run_id
    close(run)
    assert len(nested_runs(mlflow_sqlite_uri, run)) == 1


def test_system_metrics_of_the_machine_are_on_the_stage(
    mlflow_sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    run = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path))
    client = MlflowClient(mlflow_sqlite_uri)
    with run.stage(name="widths", key="k1", directory=stage_directory(tmp_path)) as stage:
        eventually(lambda: "system/cpu_utilization_percentage" in client.get_run(stage.run_id).data.metrics)
    close(run)


def test_a_database_that_another_process_has_locked_is_waited_for(
    mlflow_sqlite_uri: str, tmp_path: Path
) -> None:
    run = FamilyRun.open(request(mlflow_sqlite_uri, tmp_path))
    blocker = sqlite3.connect(
        mlflow_sqlite_uri.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
    )
    blocker.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(7.0, lambda: blocker.execute("ROLLBACK"))
    release.start()
    run.set_tags({"ireko.seed": "3"})
    release.join()
    close(run)
    assert MlflowClient(mlflow_sqlite_uri).get_run(run.run_id).data.tags["ireko.seed"] == "3"


def test_training_does_not_notice_a_server_that_is_away_and_nothing_is_lost(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = FamilyRun.open(request(mlflow_server.uri, tmp_path, uid="outage"))
    restart = threading.Thread(target=mlflow_server.start)
    with run.stage(name="widths", key="k1", directory=stage_directory(tmp_path)) as stage:
        stage.journal.append(step=1, metrics={"loss": 1.0})
        eventually(lambda: history(mlflow_server.uri, stage.run_id, "loss") == [(1, 1.0)])
        mlflow_server.stop()
        for step in range(2, 201):
            stage.journal.append(step=step, metrics={"loss": 1 / step})
            run.progress(progress(min(100, step)))
        restart.start()
    restart.join()
    assert history(mlflow_server.uri, stage.run_id, "loss") == loss_curve(range(1, 201))
    assert MlflowClient(mlflow_server.uri).get_run(stage.run_id).info.status == "FINISHED"
    close(run)


def test_a_server_that_stays_away_ends_the_stage_with_a_sentence_and_the_next_attempt_sends_all(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    directory = stage_directory(tmp_path)
    run = FamilyRun.open(request(mlflow_server.uri, tmp_path, uid="away"), patience_seconds=3)
    with pytest.raises(TrackingUnreachableError) as caught:
        train(run, directory, steps=range(1, 11), meanwhile=mlflow_server.stop)
    assert mlflow_server.uri in str(caught.value)
    assert "same command goes on" in str(caught.value)
    assert len(readings(directory)) == 10
    assert not run.fail(Failure(reason="TrackingUnreachable", message=str(caught.value), resumable=True))

    mlflow_server.start()
    again = FamilyRun.open(request(mlflow_server.uri, tmp_path, uid="away", attempt=2))
    assert again.run_id == run.run_id
    stage_run = train(again, directory, steps=range(10, 11))
    close(again)
    assert history(mlflow_server.uri, stage_run, "loss") == loss_curve(range(1, 11))
