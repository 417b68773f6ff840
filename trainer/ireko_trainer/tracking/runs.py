"""The MLflow runs of one request: a parent found or created by its tags, and one nested run per stage.

Every function here may be called again by the next attempt. Runs are found by tags before they are created,
parameters are logged once, metrics come from the stage's journal at the offset that was reached. What a
person watches (progress, live curves) is sent by one background thread and may be late or lost in an outage;
what a stage leaves behind is sent when the stage ends, and that must succeed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from ireko_api.handoff import (
    FAMILY_ARTIFACT,
    REPORT_ARTIFACT_DIR,
    TAG_FAILURE,
    TAG_NAME,
    TAG_SPEC_DIGEST,
    TAG_STAGE,
    TAG_UID,
    Failure,
    Family,
    Progress,
    RunRequest,
)
from ireko_trainer.errors import InterruptedRunError, UserError
from ireko_trainer.tracking.connection import Connection
from ireko_trainer.tracking.courier import Courier
from ireko_trainer.tracking.lineage import flat_parameters
from ireko_trainer.tracking.operations import (
    delete_tag,
    experiment,
    find_or_create_run,
    log_missing_params,
    set_running,
    set_tags,
)
from ireko_trainer.tracking.stages import StageRun, read_state

TAG_STAGE_KEY = "ireko.stage.key"
TAG_STAGE_SOURCE = "ireko.stage.source_run"
"""On a stage that an earlier spec finished: the run that trained it."""
TAG_ATTEMPT = "ireko.run.attempt"

_PARENT_TAG = "mlflow.parentRunId"
_NOTE_TAG = "mlflow.note.content"
_LONGEST_TAG = 8000
_LAST_WORDS_SECONDS = 15.0
"""How long a run that failed tries to say so: the file in the storage says it too."""

log = logging.getLogger(__name__)


class FamilyRun:
    """The parent run of one request; `open` it once per attempt and end it with `finish` or `fail`."""

    def __init__(self, *, connection: Connection, experiment_id: str, run_id: str) -> None:
        self.connection = connection
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._courier = Courier(connection=connection, run_id=run_id)

    @classmethod
    def open(cls, request: RunRequest, *, patience_seconds: float | None = None) -> FamilyRun:
        """Find or create the parent run of a request and set it running.

        Raises TrackingUnreachableError when MLflow stays away, UserError for an experiment that was deleted.
        """
        connection = Connection(request.tracking_uri, patience_seconds=patience_seconds)
        experiment_id = experiment(
            connection, name=request.spec.registry.experiment, artifact_location=request.artifact_location
        )
        run_id, created = find_or_create_run(
            connection,
            experiment_id,
            name=request.name,
            identity={TAG_UID: request.uid, TAG_SPEC_DIGEST: request.spec_digest},
            tags={TAG_NAME: request.name},
        )
        if not created:
            set_running(connection, run_id)
            delete_tag(connection, run_id, TAG_FAILURE)
        set_tags(connection, run_id, {TAG_ATTEMPT: str(request.attempt)})
        spec = request.spec.model_dump(mode="json", by_alias=True)
        log_missing_params(connection, run_id, flat_parameters(spec))
        return cls(connection=connection, experiment_id=experiment_id, run_id=run_id)

    @contextmanager
    def stage(
        self, *, name: str, key: str, directory: Path, kept: Callable[[], int | None] = lambda: None
    ) -> Iterator[StageRun]:
        """A context around a stage that works in `directory`: its nested run, found by name and input key.

        Leaving the block sends what is left of the journal and ends the run: FINISHED, KILLED after an
        InterruptedRunError, FAILED after any other exception. Raises TrackingUnreachableError when the stage
        came to its end and MLflow stays away. `kept` is as for `StageRun`.
        """
        stage = self.open_stage(name=name, key=key, directory=directory, kept=kept)
        stage.watch_system()
        self._courier.stage = stage
        try:
            yield stage
        except BaseException as error:
            self._courier.stage = None
            interrupted = isinstance(error, (InterruptedRunError, KeyboardInterrupt))
            self._end_in_haste(stage, status="KILLED" if interrupted else "FAILED")
            raise
        self._courier.stage = None
        stage.end("FINISHED")

    def _end_in_haste(self, stage: StageRun, *, status: str) -> None:
        try:
            stage.end(status, patience_seconds=_LAST_WORDS_SECONDS)
        except (UserError, MlflowException, OSError) as error:
            # The exception that ended the stage is what has to be seen.
            log.warning("MLflow was not told that the stage stopped: %s", error)

    def reuse_stage(self, *, name: str, key: str, directory: Path) -> str:
        """The nested run of a stage that was finished before, in this run or under an earlier spec.

        An earlier spec's stage gets a run here that is finished at once; a tag names the run that trained it.
        """
        source = str(read_state(directory).get("run_id", "unknown"))
        run_id, created = find_or_create_run(
            self.connection,
            self.experiment_id,
            name=name,
            identity=self._stage_identity(name, key),
            tags={
                TAG_STAGE_SOURCE: source,
                _NOTE_TAG: f"Taken over as it is from run `{source}`: no input of this stage changed since.",
            },
        )
        if created:
            self.connection.call(lambda: self.connection.client.set_terminated(run_id, "FINISHED"))
        else:
            StageRun(connection=self.connection, run_id=run_id, directory=directory).end_once()
        return run_id

    def open_stage(
        self, *, name: str, key: str, directory: Path, kept: Callable[[], int | None] = lambda: None
    ) -> StageRun:
        """Find or create the nested run of a stage and set it running."""
        run_id, created = find_or_create_run(
            self.connection, self.experiment_id, name=name, identity=self._stage_identity(name, key)
        )
        if not created:
            set_running(self.connection, run_id)
        return StageRun(connection=self.connection, run_id=run_id, directory=directory, kept=kept)

    def _stage_identity(self, name: str, key: str) -> dict[str, str]:
        return {_PARENT_TAG: self.run_id, TAG_STAGE: name, TAG_STAGE_KEY: key}

    def progress(self, progress: Progress) -> None:
        """Show how far the run is. Returns at once; at most one record a second is sent, the latest."""
        self._courier.progress = progress

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the parent run, `lineage.lineage_tags(...)` for one."""
        set_tags(self.connection, self.run_id, tags)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Log single numbers on the parent run; a number that is there already is not logged again."""
        known = self.connection.call(lambda: self.connection.client.get_run(self.run_id)).data.metrics
        now = int(time.time() * 1000)
        fresh = [
            Metric(name, float(value), now, 0)
            for name, value in metrics.items()
            if known.get(name) != float(value)
        ]
        if fresh:
            self.connection.call(lambda: self.connection.client.log_batch(self.run_id, metrics=fresh))

    def log_artifacts(self, directory: Path, *, artifact_path: str | None = None) -> None:
        """Copy a directory into the artifacts of the parent run."""
        client = self.connection.client
        self.connection.call(lambda: client.log_artifacts(self.run_id, str(directory), artifact_path))

    def close(self) -> None:
        """Stop sending, after the latest progress; the run goes on, in another process or another `FamilyRun`.

        Whoever opened the run and neither finishes nor fails it closes it, so that a progress that an outage
        held back cannot overwrite a newer one.
        """
        self._courier.stop()
        try:
            self.connection.call(self._courier.send_progress, patience_seconds=0)
        except (UserError, MlflowException) as error:
            log.warning("the latest progress was not sent: %s", error)

    def finish(self, *, family: Family, report_directory: Path) -> None:
        """Hand the family over: the report, then `family.json`, then the status that vouches for both."""
        self._courier.stop()
        client = self.connection.client
        self.log_artifacts(report_directory, artifact_path=REPORT_ARTIFACT_DIR)
        self.connection.call(lambda: client.log_text(self.run_id, family.to_json(), FAMILY_ARTIFACT))
        self.connection.call(self._courier.send_progress)
        self.connection.call(lambda: client.set_terminated(self.run_id, "FINISHED"))

    def fail(self, failure: Failure) -> bool:
        """Say why the run stopped and end it: KILLED when it was interrupted, FAILED otherwise.

        Never raises for an outage, since the failure matters more; False when MLflow could not be told.
        """
        self._courier.stop()
        status = "KILLED" if failure.reason == "Interrupted" else "FAILED"
        client = self.connection.client

        def tell() -> None:
            client.set_tag(self.run_id, TAG_FAILURE, _fitting_tag(failure))
            client.set_terminated(self.run_id, status)

        try:
            self.connection.call(tell, patience_seconds=_LAST_WORDS_SECONDS)
        except (UserError, MlflowException) as error:
            log.warning("MLflow was not told that the run stopped: %s", error)
            return False
        return True


def _fitting_tag(failure: Failure) -> str:
    """The failure as JSON that MLflow will not cut: half a JSON document says nothing."""
    text = failure.to_json()
    excess = len(text) - _LONGEST_TAG
    if excess <= 0:
        return text
    # Escaping can double a character, so twice the excess is surely enough.
    kept = max(0, len(failure.message) - 2 * excess - 1)
    return failure.model_copy(update={"message": failure.message[:kept] + "…"}).to_json()
