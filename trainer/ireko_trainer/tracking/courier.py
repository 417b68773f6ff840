"""The thread that carries live curves and progress to MLflow; an outage makes it late, never loud."""

from __future__ import annotations

import logging
import threading

from ireko_api.handoff import TAG_PROGRESS, Progress
from ireko_trainer.tracking.connection import Connection
from ireko_trainer.tracking.stages import StageRun

_SECONDS = 1.0
_PAUSE_SECONDS = 15.0
_STOP_SECONDS = 15.0

log = logging.getLogger(__name__)


class Courier:
    """The thread that carries live curves and progress to MLflow; an outage makes it late, never loud."""

    def __init__(self, *, connection: Connection, run_id: str) -> None:
        self.progress: Progress | None = None
        self.stage: StageRun | None = None
        self._connection = connection
        self._run_id = run_id
        self._sent: Progress | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-courier", daemon=True)
        self._thread.start()

    def send_progress(self) -> None:
        """Send the latest progress unless it was sent."""
        progress = self.progress
        if progress is not None and progress is not self._sent:
            self._connection.client.set_tag(self._run_id, TAG_PROGRESS, progress.to_json())
            self._sent = progress

    def stop(self) -> None:
        """End the thread; what it did not send is left to the caller."""
        self._stopping.set()
        self._thread.join(timeout=_STOP_SECONDS)

    def _work(self) -> None:
        away = False
        while not self._stopping.wait(_PAUSE_SECONDS if away else _SECONDS):
            try:
                self._round(resumed=away)
                away = False
            except Exception as error:
                # Whatever went wrong, training goes on; the end of the stage sends again and reports.
                if not away:
                    log.warning("live tracking is interrupted, metrics are kept in the storage: %s", error)
                away = True

    def _round(self, *, resumed: bool) -> None:
        self.send_progress()
        stage = self.stage
        if stage is not None:
            stage.send()
            if resumed:
                # MLflow's monitor gives up at its first failed request.
                stage.watch_system()
