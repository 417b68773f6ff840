"""Plays the trainer: real MLflow runs, tags, logged models and exit statuses as `ireko_api.handoff` says.

`$PLAY` chooses what happens: succeed (default), fail, crash, hang (work until asked to stop or killed).
A second attempt always succeeds, going on from the checkpoint that the first left in the storage.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from mlflow import MlflowClient

from ireko_api.handoff import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    FAILURE_FILE,
    FAMILY_ARTIFACT,
    TAG_FAILURE,
    TAG_NAME,
    TAG_PROGRESS,
    TAG_SPEC_DIGEST,
    TAG_UID,
    Failure,
    Family,
    Member,
    ModelShape,
    Progress,
    RunRequest,
    TeacherSummary,
)

STEPS = 10


class Trainer:
    def __init__(self, request: RunRequest) -> None:
        self.request = request
        self.storage = Path(request.storage)
        self.client = MlflowClient(request.tracking_uri)
        self.stopped = threading.Event()
        signal.signal(signal.SIGTERM, self._stop)
        self.experiment, self.run_id = self._parent_run()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped.set()

    def _parent_run(self) -> tuple[str, str]:
        name = self.request.spec.registry.experiment
        found = self.client.get_experiment_by_name(name)
        experiment = (
            found.experiment_id
            if found
            else self.client.create_experiment(name, self.request.artifact_location)
        )
        uid, digest = self.request.uid, self.request.spec_digest
        runs = self.client.search_runs(
            [experiment], f"tags.`{TAG_UID}` = '{uid}' AND tags.`{TAG_SPEC_DIGEST}` = '{digest}'"
        )
        if runs:
            return experiment, runs[0].info.run_id
        tags = {TAG_UID: uid, TAG_SPEC_DIGEST: digest, TAG_NAME: self.request.name}
        return experiment, self.client.create_run(experiment, tags=tags).info.run_id

    def orphaned(self) -> bool:
        return os.getppid() != int(os.environ["IREKO_PARENT_PID"])

    def progress(self, step: int) -> None:
        progress = Progress(
            stage="widths",
            stage_index=1,
            stage_count=3,
            step=step,
            total_steps=STEPS,
            percent=10 * step,
            eta_seconds=60,
            updated_at=datetime.now(UTC),
        )
        self.client.set_tag(self.run_id, TAG_PROGRESS, progress.to_json())

    def fail(self, failure: Failure) -> None:
        (self.storage / FAILURE_FILE).write_text(failure.to_json())
        self.client.set_tag(self.run_id, TAG_FAILURE, failure.to_json())

    def work(self, *, hang: bool) -> bool:
        """Whether every step was done."""
        checkpoint = self.storage / "checkpoint"
        step = int(checkpoint.read_text()) if checkpoint.exists() else 0
        print(f"starting at step {step}", flush=True)
        while step < STEPS:
            step += 1
            self.progress(step)
            checkpoint.write_text(str(step))
            (self.storage / "working").touch()
            while hang and step == STEPS // 2:
                if self.stopped.wait(0.05) or self.orphaned():
                    time.sleep(float(os.environ.get("PLAY_SAVE_SECONDS", "0")))
                    return False
        return True

    def hand_over(self) -> None:
        members = []
        for index, target in enumerate(self.request.spec.device_targets):
            model = self.client.create_logged_model(
                self.experiment, name=target.name, source_run_id=self.run_id
            )
            self.client.finalize_logged_model(model.model_id, "READY")
            members.append(
                Member(
                    target=target.name,
                    runtime="torch",
                    logged_model_uri=model.model_uri,
                    bundle_sha256=f"{index:064x}",
                    size_bytes=(4 - index) * 1024 * 1024,
                    parameters=4_000_000 - index,
                    average_bits=4.25,
                    shape=ModelShape(hidden=32, heads=2, intermediate=64, layers=(0, 1)),
                    metrics={"accuracy": 0.9 - index / 100, "f1": float("nan")},
                    metric="accuracy",
                )
            )
        self.client.log_text(self.run_id, "<html></html>", "report/index.html")
        family = Family(
            name=self.request.name,
            uid=self.request.uid,
            spec_digest=self.request.spec_digest,
            run_id=self.run_id,
            teacher=TeacherSummary(
                metrics={"accuracy": 0.92}, size_bytes=90_000_000, parameters=22_000_000, sha256="t" * 64
            ),
            members=tuple(members),
            report="report/index.html",
        )
        self.client.log_text(self.run_id, family.to_json(), FAMILY_ARTIFACT)
        self.client.set_terminated(self.run_id)


def main() -> int:
    request = RunRequest.model_validate_json(Path(sys.argv[1]).read_text())
    play = os.environ.get("PLAY", "succeed") if request.attempt == 1 else "succeed"
    if play == "crash":
        print("Traceback: out of luck", flush=True)
        return EXIT_FAILED
    trainer = Trainer(request)
    if play == "fail":
        trainer.fail(
            Failure(reason="InvalidInput", message="spec.data.train.uri: no-such.jsonl does not exist.")
        )
        return EXIT_FAILED
    if not trainer.work(hang=play == "hang"):
        trainer.fail(
            Failure(reason="Interrupted", message="Stopped at step 5; the state is saved.", resumable=True)
        )
        return EXIT_INTERRUPTED
    trainer.hand_over()
    return 0


if __name__ == "__main__":
    sys.exit(main())
