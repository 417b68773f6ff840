"""Where `ireko run` keeps everything of a laptop: the layout of `--workdir`, and the lock of a run.

    .ireko/
      mlflow.db  mlartifacts/          the tracking store, unless another one is named
      registry-<hash>.lock             held while versions of one model are registered
      runs/<name>/run.json             the identity of the run, written once
      runs/<name>/lock                 held by `ireko run` *and by the trainer that it started*
      runs/<name>/request.json         what the latest attempt was started with
      runs/<name>/status.json          the status, as `kubectl get -o json` would show it on a cluster
      runs/<name>/trainer.log          what the latest attempts wrote
      storage/<uid>/                   checkpoints and outputs of the stages

The trainer inherits the descriptor of the lock. When `ireko run` is killed, its trainer still writes a
checkpoint for some seconds, and the lock keeps a second trainer away from the same storage until then.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ireko_api.handoff import FAILURE_FILE, Failure
from ireko_api.status import CompressionRunStatus
from ireko_operator.errors import LockedError, StorageError, writing_to

ORPHAN_SECONDS = 180.0
"""How long to wait for the trainer of a killed `ireko run` to save its state and end."""


@dataclass(frozen=True, kw_only=True)
class Workdir:
    """The directory given as `--workdir`, absolute."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> Workdir:
        """The working directory at `path`, which need not exist yet."""
        return cls(root=path.expanduser().resolve())

    @property
    def database(self) -> Path:
        """The SQLite database of the default tracking store."""
        return self.root / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """The default tracking store."""
        return f"sqlite:///{self.database}"

    @property
    def artifact_location(self) -> str:
        """Where artifacts go when no tracking server decides it, as a URI."""
        return (self.root / "mlartifacts").as_uri()

    def run(self, name: str) -> RunDirectory:
        """The directory of the run called `name`."""
        return RunDirectory(name=name, path=self.root / "runs" / name, root=self.root)

    def registry_lock(self, model: str) -> FileLock:
        """The lock that whoever registers versions of `model` from this directory holds."""
        name = hashlib.sha256(model.encode()).hexdigest()[:16]  # a model's name may be longer than a file's
        return FileLock(self.root / f"registry-{name}.lock")


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """What is kept about one run by name."""

    name: str
    path: Path
    root: Path

    @property
    def request(self) -> Path:
        """What the latest attempt was started with."""
        return self.path / "request.json"

    @property
    def status(self) -> Path:
        """The status, rewritten when it changes."""
        return self.path / "status.json"

    @property
    def log(self) -> Path:
        """What the trainer wrote to its standard streams."""
        return self.path / "trainer.log"

    def storage(self, uid: str) -> Path:
        """The storage of the stages."""
        return self.root / "storage" / uid

    def uid(self) -> str:
        """The identity of the run, made up on the first call. Call it under the lock."""
        identity = self.path / "run.json"
        if not identity.exists():
            record = {"uid": str(uuid.uuid4()), "name": self.name, "createdAt": datetime.now(UTC).isoformat()}
            write_atomically(identity, json.dumps(record))
        try:
            return str(json.loads(identity.read_text(encoding="utf-8"))["uid"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{identity} is damaged: put the uid that {self.root / 'storage'} shows back into it, "
                f"or delete it to begin this run anew."
            ) from error

    def read_status(self) -> CompressionRunStatus | None:
        """The status as last written, or None before the first and where it cannot be read.

        It is a report, not a source: everything but the times and the earlier attempts is observed anew.
        """
        try:
            return CompressionRunStatus.model_validate_json(self.status.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def read_failure(self, uid: str) -> Failure | None:
        """The record that the trainer left when it stopped, if it could write one."""
        try:
            return Failure.model_validate_json((self.storage(uid) / FAILURE_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def forget_failure(self, uid: str) -> None:
        """Remove the record of an earlier attempt."""
        (self.storage(uid) / FAILURE_FILE).unlink(missing_ok=True)

    @contextmanager
    def locked(
        self, *, notice: Callable[[str], None], orphan_seconds: float = ORPHAN_SECONDS
    ) -> Iterator[int]:
        """Hold the lock of the run; yields the descriptor, which the trainer inherits.

        Raises `LockedError`, naming the holder, while another `ireko run` is at work on this run.
        """
        with writing_to(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _acquire(descriptor, name=self.name, notice=notice, orphan_seconds=orphan_seconds)
            with writing_to(self.path / "lock"):
                _write_holder(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path`: a reader sees the old text or the new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _acquire(descriptor: int, *, name: str, notice: Callable[[str], None], orphan_seconds: float) -> None:
    deadline = time.monotonic() + orphan_seconds
    told = False
    while not _try_lock(descriptor):
        holder = _read_holder(descriptor)
        if not _is_gone(holder):
            raise LockedError(
                f"The run {name!r} is being worked on by process {holder.get('pid', '?')} on "
                f"{holder.get('host', '?')} since {holder.get('since', '?')}. Wait for it, or stop it with "
                f"`kill -INT {holder.get('pid', 'PID')}` (it saves its state), or give this run "
                "another metadata.name."
            )
        if time.monotonic() > deadline:
            raise LockedError(
                f"The trainer of an earlier `ireko run` of {name!r} (process {holder.get('pid')}, "
                "which is gone) still "
                f"runs after {orphan_seconds:.0f} s. Find it with `pgrep -af ireko_trainer`, end it "
                "and run again."
            )
        if not told:
            notice(
                f"An earlier `ireko run` of {name!r} was killed; waiting for its trainer to save its state."
            )
            told = True
        time.sleep(0.1)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_holder(descriptor: int) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _read_holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # the holder has the lock and is about to write its name
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the process that took the lock has ended, as far as this host can tell."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
