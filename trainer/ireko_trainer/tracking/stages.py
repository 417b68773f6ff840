"""The nested run of one stage: its metrics, sent from the journal, and the use of the machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from ireko_trainer.tracking.connection import Connection
from ireko_trainer.tracking.journal import MetricsJournal, Reading, read_from
from ireko_trainer.tracking.operations import log_missing_params, set_tags

STATE_FILE = "tracking.json"
"""What was sent from a stage directory."""
_METRICS_PER_CALL = 1000


class StageRun:
    """The nested run of a stage that works, or worked, in a directory.

    `kept` says how many bytes of the journal survive this machine: MLflow is told no more, since a lost step is done
    again and would be told twice. None: as many as are on disk.
    """

    def __init__(
        self,
        *,
        connection: Connection,
        run_id: str,
        directory: Path,
        kept: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.run_id = run_id
        self._connection = connection
        self._directory = directory
        self._kept = kept
        self._sending = threading.Lock()
        # The courier restarts the monitor after an outage, possibly while the stage ends.
        self._watching = threading.Lock()
        self._ended = False
        self._system: Any = None

    @cached_property
    def journal(self) -> MetricsJournal:
        """The writer of the stage's metrics, for a stage that works in this process."""
        return MetricsJournal(self._directory)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the parameters that the run does not have yet."""
        log_missing_params(
            self._connection, self.run_id, {name: str(value) for name, value in params.items()}
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the stage's run."""
        set_tags(self._connection, self.run_id, tags)

    def log_artifacts(self, directory: Path, *, artifact_path: str | None = None) -> None:
        """Copy a directory into the artifacts of the stage's run."""
        client = self._connection.client
        self._connection.call(lambda: client.log_artifacts(self.run_id, str(directory), artifact_path))

    def send(self) -> int:
        """Send the journal's new lines once, without patience; the number of readings sent."""
        with self._sending:
            offset = self._sent_bytes()
            fresh, end = read_from(self._directory, offset=offset, end=self._kept())
            for begin in range(0, len(fresh), _METRICS_PER_CALL):
                chunk = [_metric(reading) for reading in fresh[begin : begin + _METRICS_PER_CALL]]
                self._connection.client.log_batch(self.run_id, metrics=chunk)
            if fresh:
                # A crash before this line sends the same readings again: the same name, step, time and value
                # are one row in MLflow.
                _write_state(self._directory, {"run_id": self.run_id, "sent_bytes": end})
            return len(fresh)

    def _sent_bytes(self) -> int:
        state = read_state(self._directory)
        return int(state.get("sent_bytes", 0)) if state.get("run_id") == self.run_id else 0

    def watch_system(self) -> None:
        """Log CPU, memory, disk, network and GPU use of this process's machine until the run ends."""
        with self._watching:
            if self._ended:
                return
            self._unwatch_system()
            self._system = SystemMetricsMonitor(
                self.run_id, resume_logging=True, tracking_uri=self._connection.uri
            )
            self._system.start()

    def _unwatch_system(self) -> None:
        if self._system is not None:
            self._system.finish()
            self._system = None

    def end(self, status: str, *, patience_seconds: float | None = None) -> None:
        """Send everything and set the run's final status."""
        with self._watching:
            self._ended = True
            self._unwatch_system()
        self._connection.call(self.send, patience_seconds=patience_seconds)
        self._connection.call(
            lambda: self._connection.client.set_terminated(self.run_id, status),
            patience_seconds=patience_seconds,
        )

    def end_once(self) -> None:
        """Finish the run of a stage that is complete, unless the attempt that completed it did so."""
        run = self._connection.call(lambda: self._connection.client.get_run(self.run_id))
        if run.info.status != "FINISHED":
            self.end("FINISHED")


def _metric(reading: Reading) -> Any:
    return Metric(reading.name, reading.value, reading.timestamp_ms, reading.step)


def read_state(directory: Path) -> dict[str, Any]:
    """What was sent from a stage directory and to which run: `run_id` and `sent_bytes`, or nothing."""
    path = directory / STATE_FILE
    if not path.is_file():
        return {}
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def _write_state(directory: Path, state: Mapping[str, Any]) -> None:
    temporary = directory / f".{STATE_FILE}.tmp"
    temporary.write_text(json.dumps(state))
    temporary.replace(directory / STATE_FILE)
