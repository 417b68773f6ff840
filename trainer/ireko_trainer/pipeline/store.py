"""Stages on disk: found by the hash of their inputs, written atomically, never done twice.

    <storage>/stages/<name>-<key>.partial/   a stage at work: checkpoints and metrics, what a next attempt resumes from
    <storage>/stages/<name>-<key>/           a finished stage: its outputs and `record.json`

A stage directory gets its final name by one rename, after everything in it is on disk. So whoever dies at any
line leaves either a finished stage or one that can be resumed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ireko_trainer.errors import UserError

Json = Mapping[str, Any]

_RECORD = "record.json"
_KEY_LENGTH = 16


class StorageFullError(UserError):
    """The storage has no room left."""

    reason = "StorageFull"


def content_key(**inputs: Any) -> str:
    """Hex digest that is equal when, and only when, the canonical JSON of the inputs is equal."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:_KEY_LENGTH]


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """A stage whose outputs are complete."""

    name: str
    key: str
    directory: Path
    record: Json


@dataclass(frozen=True, kw_only=True)
class WorkingStage:
    """A stage at work in a directory that survives the process."""

    name: str
    key: str
    directory: Path


class StageStore:
    """All stages of one run."""

    def __init__(self, *, storage: Path) -> None:
        self._root = storage / "stages"
        with explained_io_errors(storage):
            self._root.mkdir(parents=True, exist_ok=True)

    def finished(self, *, name: str, key: str) -> FinishedStage | None:
        """The stage with these inputs, if an earlier attempt completed it."""
        directory = self._root / f"{name}-{key}"
        record = directory / _RECORD
        if not record.is_file():
            return None
        return FinishedStage(name=name, key=key, directory=directory, record=json.loads(record.read_text()))

    def begin(self, *, name: str, key: str) -> WorkingStage:
        """Open the working directory of a stage; what an interrupted attempt left in it is still there."""
        directory = self._root / f"{name}-{key}.partial"
        with explained_io_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        return WorkingStage(name=name, key=key, directory=directory)

    def finish(self, stage: WorkingStage, *, record: Json) -> FinishedStage:
        """Publish a stage under its final name, with `record` as what later stages read of it."""
        write_json(stage.directory / _RECORD, record)
        final = self._root / f"{stage.name}-{stage.key}"
        if final.exists():
            shutil.rmtree(final)
        stage.directory.rename(final)
        _sync_directory(self._root)
        return FinishedStage(name=stage.name, key=stage.key, directory=final, record=record)


def write_json(path: Path, content: Json) -> None:
    """Replace a JSON file atomically; readers see the old or the new content, never a part.

    Keys keep their order: layers are listed from the first to the last.
    """
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    with explained_io_errors(path):
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def explained_io_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a sentence that says what to do."""
    with explained_full_disk(path):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); make it writable or choose another --workdir"
            ) from error


@contextmanager
def explained_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk, whichever library ran into it, into a sentence that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Safetensors and others raise exceptions of their own, in which only the text names the cause.
        if not _is_full_disk(error):
            raise
        where = getattr(error, "filename", None) or path
        raise StorageFullError(
            f"{where}: no space left on the device; free some (nothing is lost) and run the same command again"
        ) from error


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
