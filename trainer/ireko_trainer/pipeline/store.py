"""The stages of a run: found by the hash of their inputs, published at once or not at all, never done twice.

    <directory>/stages/<name>-<key>.partial/   a stage at work: what a next attempt resumes from
    <directory>/stages/<name>-<key>/           a finished stage: its outputs and `record.json`

A stage directory gets its final name by one rename, after everything in it is on disk. So whoever dies at any
line leaves either a finished stage or one that can be resumed. Where machines share no directory, the storage
publishes a stage before it gets its final name here (`storage`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ireko_trainer.pipeline.files import Json, explained_io_errors, sync_directory, write_json
from ireko_trainer.pipeline.storage import Storage
from ireko_trainer.tracking.journal import JOURNAL_FILE

STATE_FILE = "state.pt"
"""The training state of a stage at work; worth nothing once the stage is finished."""

_RECORD = "record.json"
_PARTIAL = ".partial"
_KEY_LENGTH = 16


def content_key(**inputs: Any) -> str:
    """Hex digest that is equal when, and only when, the canonical JSON of the inputs is equal."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:_KEY_LENGTH]


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """A stage whose outputs are complete."""

    name: str
    key: str
    record: Json
    _directory: Path
    _storage: Storage

    @property
    def identity(self) -> str:
        """The name that no other stage of the run has, `StageStore.named` finds it again."""
        return f"{self.name}-{self.key}"

    def output(self, name: str) -> Path:
        """A file or directory that the stage left, brought to this machine if it is not there yet."""
        self._storage.fetch(self.identity, name, self._directory)
        return self._directory / name


@dataclass(frozen=True, kw_only=True)
class WorkingStage:
    """A stage at work in a directory that survives the process."""

    name: str
    key: str
    directory: Path
    _storage: Storage

    @property
    def identity(self) -> str:
        """The name that no other stage of the run has."""
        return f"{self.name}-{self.key}"

    def keep(self, *, surely: bool = False) -> None:
        """Let the training state and the metrics so far survive this machine, as `Storage.keep` has it."""
        self._storage.keep(self.identity, self.directory, files=(STATE_FILE, JOURNAL_FILE), surely=surely)

    def kept_metrics(self) -> int | None:
        """How many bytes of the journal survive this machine; None: whatever is on disk."""
        return self._storage.kept_bytes(self.identity, JOURNAL_FILE)


class StageStore:
    """All stages of one run."""

    def __init__(self, *, storage: Storage) -> None:
        self._storage = storage
        self._root = storage.directory / "stages"
        with explained_io_errors(storage.directory):
            self._root.mkdir(parents=True, exist_ok=True)

    def finished(self, *, name: str, key: str) -> FinishedStage | None:
        """The stage with these inputs, if somebody completed it."""
        directory = self._root / f"{name}-{key}"
        record = directory / _RECORD
        found = json.loads(record.read_text()) if record.is_file() else self._storage.record(directory.name)
        if found is None:
            return None
        return FinishedStage(name=name, key=key, record=found, _directory=directory, _storage=self._storage)

    def named(self, identity: str) -> FinishedStage:
        """The finished stage of an earlier process, by its identity."""
        name, _, key = identity.rpartition("-")
        found = self.finished(name=name, key=key)
        assert found is not None, f"stage {identity} is not in the store"
        return found

    def begin(self, *, name: str, key: str) -> WorkingStage:
        """Open the working directory of a stage, with what an interrupted attempt left in it."""
        directory = self._root / f"{name}-{key}{_PARTIAL}"
        with explained_io_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._storage.restore(f"{name}-{key}", directory)
        return WorkingStage(name=name, key=key, directory=directory, _storage=self._storage)

    def finish(self, stage: WorkingStage, *, record: Json) -> None:
        """Publish a stage under its final name, with `record` as what later stages read of it."""
        write_json(stage.directory / _RECORD, record)
        self._storage.publish(stage.identity, stage.directory, record=record, without=(STATE_FILE,))
        final = self._root / stage.identity
        if final.exists():
            shutil.rmtree(final)
        stage.directory.rename(final)
        sync_directory(self._root)

    def sweep(self) -> None:
        """Remove what stages left that nobody finished: their inputs have changed since."""
        for directory in self._root.glob(f"*{_PARTIAL}"):
            shutil.rmtree(directory)
        self._storage.forget_unfinished()
