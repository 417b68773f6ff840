"""The end of a run while MLflow comes and goes: a real store that is not always there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ireko_api.handoff import (
    TAG_SPEC_DIGEST,
    TAG_UID,
    Family,
    Member,
    ModelShape,
    RunRequest,
    TeacherSummary,
)
from ireko_api.spec import CompressionRun
from ireko_api.status import CompressionRunStatus
from ireko_api.validation import parse
from ireko_operator.errors import TrackingError
from ireko_operator.launch import Attempt
from ireko_operator.reconcile.local import Ended, LocalReconcile
from ireko_operator.reconcile.observe import Subject
from ireko_operator.reconcile.state import Stop
from ireko_operator.tracking import connect


def run_for(target: str) -> CompressionRun:
    return parse(
        {
            "apiVersion": "ireko.dev/v1alpha1",
            "kind": "CompressionRun",
            "metadata": {"name": "demo"},
            "spec": {
                "teacher": {"model": "file:///models/teacher", "task": "text-classification"},
                "data": {"train": {"uri": "a.jsonl", "textColumns": ["sentence"], "labelColumn": "label"}},
                "pipeline": {"quantization": {"bits": [4, 8]}},
                "deviceTargets": [{"name": target, "constraints": {"maxSizeMiB": 20}}],
            },
        }
    )


@dataclass(kw_only=True)
class FinishingLauncher:
    """Hands a family over in the instant in which it is started."""

    client: MlflowClient
    artifacts: Path
    alias: str
    requests: list[RunRequest] = field(default_factory=list)

    def start(self, request: RunRequest) -> None:
        self.requests.append(request)
        experiment = self.client.create_experiment("ireko", self.artifacts.as_uri())
        tags = {TAG_UID: request.uid, TAG_SPEC_DIGEST: request.spec_digest}
        run_id = self.client.create_run(experiment, tags=tags).info.run_id
        model = self.client.create_logged_model(experiment, name="member", source_run_id=run_id)
        member = Member(
            target=self.alias,
            runtime="torch",
            logged_model_uri=model.model_uri,
            bundle_sha256="ab" * 32,
            size_bytes=5_000_000,
            parameters=1_000_000,
            average_bits=4.25,
            shape=ModelShape(hidden=32, heads=2, intermediate=64, layers=(0, 1)),
            metrics={"accuracy": 0.9},
            metric="accuracy",
        )
        family = Family(
            name=request.name,
            uid=request.uid,
            spec_digest=request.spec_digest,
            run_id=run_id,
            teacher=TeacherSummary(metrics={"accuracy": 0.92}, size_bytes=9, parameters=2, sha256="t"),
            members=(member,),
            report="report/index.html",
        )
        self.client.log_text(run_id, family.to_json(), "family.json")

    def observe(self, number: int) -> Attempt | None:
        started = any(request.attempt == number for request in self.requests)
        return Attempt(number=number, alive=False, exit_code=0) if started else None

    def stop(self, number: int, *, force: bool) -> None:
        pytest.fail(f"nobody asked attempt {number} to stop ({force=})")


@dataclass(kw_only=True)
class Wavering:
    """A store that does not answer in the passes named in `away`."""

    client: MlflowClient
    away: range
    calls: int = 0

    def __call__(self) -> MlflowClient:
        self.calls += 1
        if self.calls in self.away:
            raise TrackingError("MLflow does not answer.")
        return self.client


@pytest.fixture
def reconcile(
    mlflow_sqlite_uri: str, tmp_path: Path
) -> Callable[..., tuple[Ended, list[CompressionRunStatus]]]:
    client = connect(mlflow_sqlite_uri)

    def run(*, away: range, alias: str = "gateway") -> tuple[Ended, list[CompressionRunStatus]]:
        saved: list[CompressionRunStatus] = []
        manifest = run_for("gateway")

        def request(number: int) -> RunRequest:
            fields: dict[str, Any] = {"name": "demo", "uid": "u-1", "base_dir": "/", "storage": "/"}
            digest = manifest.spec.digest()
            return RunRequest(
                **fields,
                spec=manifest.spec,
                spec_digest=digest,
                tracking_uri=mlflow_sqlite_uri,
                attempt=number,
            )

        ended = LocalReconcile(
            subject=Subject(
                run=manifest,
                uid="u-1",
                launcher=FinishingLauncher(client=client, artifacts=tmp_path / "artifacts", alias=alias),
                tracking_uri=mlflow_sqlite_uri,
                connect=Wavering(client=client, away=away),
            ),
            request=request,
            registering=nullcontext(),
            stop=lambda: Stop.NO,
            report=lambda _status, _observed: None,
            save=saved.append,
            status=CompressionRunStatus(),
            poll_seconds=0.01,
        ).run()
        return ended, saved

    return run


@pytest.mark.parametrize(
    "first_away", [2, 3, 4], ids=["when it ended", "when it is registered", "after that"]
)
def test_a_short_outage_at_the_end_is_waited_out(
    reconcile: Callable[..., tuple[Ended, list[CompressionRunStatus]]], first_away: int
) -> None:
    ended, saved = reconcile(away=range(first_away, first_away + 3))

    assert ended.status.phase == "Succeeded"
    assert [member.model_uri for member in ended.status.members] == ["models:/demo@gateway"]
    assert all(status.phase == "Running" for status in saved[:-1])


def test_a_refused_registration_ends_the_run_with_mlflows_reason(
    reconcile: Callable[..., tuple[Ended, list[CompressionRunStatus]]],
) -> None:
    ended, _ = reconcile(away=range(0), alias="latest")

    reasons = {condition.type: condition.reason for condition in ended.status.conditions}
    assert ended.status.phase == "Failed"
    assert (reasons["Trained"], reasons["Registered"]) == ("FamilyComplete", "RegistrationFailed")
    assert "'latest' alias name (case insensitive) is reserved" in ended.status.conditions[-1].message
