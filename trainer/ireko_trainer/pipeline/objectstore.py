"""A run's storage in an object store, behind any scheme of fsspec.

    <uri>/stop, trained.json, failure.json     small files, each one object
    <uri>/stages/<stage>/<digest>/<file>       the files of a stage, by content
    <uri>/stages/<stage>/at-work.json          a snapshot: which of them the next attempt starts from
    <uri>/stages/<stage>/finished.json         a snapshot of the finished stage, with its record

Files are written before the snapshot that names them and removed after the snapshot that no longer does, and a
snapshot is one object. So whoever dies at any line leaves a snapshot whose files are all there. What is read is
compared with the digest that the snapshot holds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from typing_extensions import override

from ireko_trainer.data.location import locate
from ireko_trainer.errors import StorageNotWritableError, UserError
from ireko_trainer.pipeline.files import Json, explained_full_disk, explained_io_errors, to_json
from ireko_trainer.pipeline.storage import Storage

T = TypeVar("T")

FIELD = "spec.compute.storage.objectStore.uri"
PATIENCE_SECONDS = 300.0
"""How long a write that must succeed is repeated. Training that only keeps a checkpoint does not wait."""

_CHECKPOINT_PATIENCE_SECONDS = 10.0
_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 10.0
_AT_WORK, _FINISHED = "at-work.json", "finished.json"
_REFUSALS = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENAMETOOLONG, errno.EREMCHG)
_DRIVERS = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "adlfs", "requests", "urllib3")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _StoredFile:
    place: str
    """Of the object, in the stage."""
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    files: Mapping[str, _StoredFile]
    """By the file's path in the directory of the stage."""
    record: Json

    @classmethod
    def parse(cls, content: bytes) -> _Snapshot:
        entry = json.loads(content)
        return cls(
            files={name: _StoredFile(**file) for name, file in entry["files"].items()}, record=entry["record"]
        )

    def to_bytes(self) -> bytes:
        return to_json(
            {"record": self.record, "files": {name: asdict(file) for name, file in self.files.items()}}
        )


class ObjectStore(Storage):
    """The storage of one run in an object store, with a scratch directory on this machine.

    Two workers of one machine do not share their scratch directories, so neither can pull a file away from
    under the other. The driver shares that of the first worker, which never works at the same time.
    """

    def __init__(self, uri: str, *, rank: int = 0, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._uri = uri.rstrip("/")
        location = locate(self._uri, base_dir=Path(), field=FIELD, fresh=True)
        self._filesystem, self._root = location.filesystem, location.path.rstrip("/")
        self._patience = patience_seconds
        self._snapshots: dict[str, _Snapshot] = {}
        """The last one seen of each stage; that of a finished stage never changes."""
        digest = hashlib.sha256(self._uri.encode()).hexdigest()[:16]
        scratch = Path(tempfile.gettempdir()) / f"ireko-{os.getuid()}" / digest
        self.directory = scratch / str(rank)
        self.cache = scratch / "cache"
        self.look_seconds = 2.0
        with explained_io_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    @override
    def require_writable(self) -> None:
        self.write("writable", b"")
        self.remove("writable")

    # --- small files --------------------------------------------------------------------------------------

    @override
    def read(self, name: str) -> bytes | None:
        def get() -> bytes | None:
            try:
                content: bytes = self._filesystem.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

        return self._patiently(get)

    @override
    def write(self, name: str, content: bytes) -> None:
        self._patiently(lambda: self._filesystem.pipe_file(self._path(name), content))

    @override
    def remove(self, name: str) -> None:
        def delete() -> None:
            # Removing an object that is not there is no error in some stores and one in others.
            if self._filesystem.exists(self._path(name)):
                self._filesystem.rm_file(self._path(name))

        self._patiently(delete)

    # --- stages -------------------------------------------------------------------------------------------

    @override
    def restore(self, stage: str, directory: Path) -> None:
        snapshot = self._read_snapshot(stage, _AT_WORK) or _Snapshot(files={}, record={})
        for path in sorted(directory.iterdir()):
            # What another attempt left on this machine may be newer than what the other workers start from.
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in snapshot.files or _sha256(path) != snapshot.files[path.name].sha256:
                path.unlink()
        self._snapshots[stage] = snapshot
        self._download(stage, snapshot.files, directory, marker=_AT_WORK)

    @override
    def keep(self, stage: str, directory: Path, *, files: Sequence[str], surely: bool) -> None:
        present = [directory / name for name in files if (directory / name).is_file()]
        patience = self._patience if surely else _CHECKPOINT_PATIENCE_SECONDS
        try:
            self._save(stage, directory, present, marker=_AT_WORK, record={}, patience=patience)
        except _OutageError as error:
            if surely:
                raise
            log.warning("%s; training goes on, and the next checkpoint is kept instead", error)

    @override
    def kept_bytes(self, stage: str, file: str) -> int | None:
        snapshot = self._snapshots.get(stage)
        return snapshot.files[file].size if snapshot is not None and file in snapshot.files else 0

    @override
    def publish(self, stage: str, directory: Path, *, record: Json, without: Sequence[str]) -> None:
        outputs = [path for path in _files_in(directory) if path.name not in without]
        self._save(stage, directory, outputs, marker=_FINISHED, record=record, patience=self._patience)

    @override
    def record(self, stage: str) -> Json | None:
        snapshot = self._read_snapshot(stage, _FINISHED)
        if snapshot is None:
            return None
        self._snapshots[stage] = snapshot
        return snapshot.record

    @override
    def fetch(self, stage: str, output: str, directory: Path) -> None:
        snapshot = self._snapshots.get(stage) or self._read_snapshot(stage, _FINISHED)
        assert snapshot is not None, f"stage {stage} is fetched and was not published"
        wanted = {
            name: file
            for name, file in snapshot.files.items()
            if (name == output or name.startswith(f"{output}/"))
            and not _has(directory / name, size=file.size)
        }
        self._download(stage, wanted, directory, marker=_FINISHED)

    @override
    def forget_unfinished(self) -> None:
        def find() -> list[str]:
            found: list[str] = self._filesystem.find(self._path("stages"))
            return found

        names = [name.removeprefix(self._path("stages") + "/") for name in self._patiently(find)]
        finished = {name.partition("/")[0] for name in names if name.endswith(f"/{_FINISHED}")}
        self._delete([f"stages/{name}" for name in names if name.partition("/")[0] not in finished])

    # --- snapshots ----------------------------------------------------------------------------------------

    def _save(
        self,
        stage: str,
        directory: Path,
        paths: Sequence[Path],
        *,
        marker: str,
        record: Json,
        patience: float,
    ) -> None:
        known = self._snapshots.get(stage, _Snapshot(files={}, record={})).files
        files = {str(path.relative_to(directory)): _described(path, directory) for path in paths}
        new = [name for name, file in files.items() if known.get(name) != file]
        snapshot = _Snapshot(files=files, record=record)

        def upload() -> None:
            if new:
                self._filesystem.put(
                    [str(directory / name) for name in new],
                    [self._path(f"stages/{stage}/{files[name].place}") for name in new],
                )
            self._filesystem.pipe_file(self._path(f"stages/{stage}/{marker}"), snapshot.to_bytes())

        self._patiently(upload, patience=patience)
        self._snapshots[stage] = snapshot
        self._delete_superseded(stage, {marker, *(file.place for file in files.values())})

    def _delete_superseded(self, stage: str, current: set[str]) -> None:
        prefix = self._path(f"stages/{stage}") + "/"
        try:
            places = [name.removeprefix(prefix) for name in self._filesystem.find(prefix)]
            self._delete([f"stages/{stage}/{place}" for place in places if place not in current])
        except Exception as error:
            # What is left costs room and nothing else.
            log.warning("%s: what is superseded in stage %s was not removed: %s", self._uri, stage, error)

    def _delete(self, names: Sequence[str]) -> None:
        if names:
            self._patiently(lambda: self._filesystem.rm([self._path(name) for name in names]))

    def _read_snapshot(self, stage: str, marker: str) -> _Snapshot | None:
        content = self.read(f"stages/{stage}/{marker}")
        return None if content is None else _Snapshot.parse(content)

    def _download(
        self, stage: str, files: Mapping[str, _StoredFile], directory: Path, *, marker: str
    ) -> None:
        """Files get their names once they are whole; a directory that was half fetched is completed."""
        missing = {name: file for name, file in files.items() if not _has(directory / name, size=file.size)}
        if not missing:
            return
        with (
            explained_io_errors(directory),
            tempfile.TemporaryDirectory(dir=self.directory, prefix="fetch-") as temporary,
        ):
            partial = {name: Path(temporary) / name for name in missing}
            for path in partial.values():
                path.parent.mkdir(parents=True, exist_ok=True)

            def download() -> None:
                try:
                    self._filesystem.get(
                        [self._path(f"stages/{stage}/{file.place}") for file in missing.values()],
                        [str(path) for path in partial.values()],
                    )
                except FileNotFoundError:
                    log.exception("%s: a file of stage %s is gone", self._uri, stage)

            self._patiently(download)
            for name, path in partial.items():
                if not path.is_file() or _sha256(path) != missing[name].sha256:
                    self._refuse_damage(stage, name, marker=marker)
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                path.replace(directory / name)

    def _refuse_damage(self, stage: str, name: str, *, marker: str) -> None:
        self.remove(f"stages/{stage}/{marker}")
        raise StorageNotWritableError(
            f"{FIELD}: {self._uri}/stages/{stage}: {name} is not what was written there, so nothing of that stage is "
            "used; the next attempt does it again. Find out who else writes to that place"
        )

    # --- requests -----------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _patiently(self, request: Callable[[], T], *, patience: float | None = None) -> T:
        """The result of a request, repeated while the store is away."""
        patience = self._patience if patience is None else min(patience, self._patience)
        deadline = time.monotonic() + patience
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                with explained_full_disk(self.directory):
                    return request()
            except UserError:
                raise
            except Exception as error:
                # Every driver raises errors of its own; what is neither theirs nor the system's is a defect.
                self._raise_unless_outage(error)
                if time.monotonic() + delay > deadline:
                    raise _OutageError(
                        f"{FIELD}: {self._uri} did not answer for {patience:.0f} s ({_first_line(error)}); nothing "
                        "is lost, and the next attempt goes on where this one stood"
                    ) from error
                log.warning("%s does not answer, trying again in %.1f s", self._uri, delay)
            time.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    def _raise_unless_outage(self, error: Exception) -> None:
        remedy = _remedy(error)
        if remedy is not None:
            raise StorageNotWritableError(
                f"{FIELD}: {self._uri} cannot be used ({_first_line(error)}); {remedy}"
            ) from error
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_DRIVERS):
            raise error


class _OutageError(StorageNotWritableError):
    """The store stayed away for as long as a run can wait."""


def _remedy(error: Exception) -> str | None:
    """What to do about an error that will not pass by itself."""
    kind = type(error).__name__
    if "Credential" in kind or "Auth" in kind:
        return (
            "name a Secret with the credentials, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in "
            "spec.compute.storage.objectStore.credentialsSecret, or a service account that has access in "
            "spec.compute.serviceAccountName"
        )
    if isinstance(error, FileNotFoundError):
        return "create the bucket, or correct its name"
    if isinstance(error, PermissionError):
        return (
            "let the credentials of spec.compute.storage.objectStore.credentialsSecret get, put, list and delete "
            "objects there"
        )
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return "correct the URI, or the store's endpoint and region in the environment of the pods"
    return None


def _described(path: Path, directory: Path) -> _StoredFile:
    digest = _sha256(path)
    name = path.relative_to(directory)
    return _StoredFile(place=f"{digest[:16]}/{name}", sha256=digest, size=path.stat().st_size)


def _files_in(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield path


def _has(path: Path, *, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
