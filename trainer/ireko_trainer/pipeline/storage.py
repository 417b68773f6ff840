"""Where a run keeps what outlives its processes: a directory that all machines share, or an object store.

A shared directory is worked in as it is. In an object store nothing can be appended or renamed, so there every
process works in a scratch directory, and what other machines or the next attempt need is copied (`objectstore`).
The pipeline does the same in both: it works in `directory`, and says at the points below what others need; for a
shared directory that is nothing, since they see it already.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from ireko_trainer.pipeline.files import Json, explained_io_errors, write_bytes


class Storage(Protocol):
    """The storage of one run, as one process sees it.

    Raises StorageNotWritableError or StorageFullError, with the remedy, where it cannot do its work.
    """

    directory: Path
    """Where this process works."""
    cache: Path
    """For downloads that may be lost."""
    look_seconds: float
    """How often a small file may be looked at."""

    def require_writable(self) -> None:
        """Find out before anything is done, and not after an hour of training."""

    def read(self, name: str) -> bytes | None:
        """A small file that all machines see; None where there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file that all machines see."""

    def remove(self, name: str) -> None:
        """Remove a small file if it is there."""

    def restore(self, stage: str, directory: Path) -> None:
        """Fill the directory of a stage at work with what was kept of it, and with nothing else."""

    def keep(self, stage: str, directory: Path, *, files: Sequence[str], surely: bool) -> None:
        """Let these files of a stage at work outlive this machine.

        An outage is no error unless it has to be done `surely`: the next time will do.
        """

    def kept_bytes(self, stage: str, file: str) -> int | None:
        """How much of a file of a stage at work outlives this machine; None: whatever is on disk."""

    def publish(self, stage: str, directory: Path, *, record: Json, without: Sequence[str]) -> None:
        """Let the outputs of a finished stage be seen by all machines, and its record last."""

    def record(self, stage: str) -> Json | None:
        """The record of a stage that another machine published."""

    def fetch(self, stage: str, output: str, directory: Path) -> None:
        """Bring a file or directory of a published stage into `directory`, if it is not there."""

    def forget_unfinished(self) -> None:
        """Remove what was kept of stages that nobody finished."""


class SharedDirectory(Storage):
    """A directory that every machine of the run sees under the same path: a laptop's disk, a mounted volume."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cache = directory / "cache"
        self.look_seconds = 0.2

    @override
    def require_writable(self) -> None:
        with explained_io_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        self.write("writable", b"")
        self.remove("writable")

    @override
    def read(self, name: str) -> bytes | None:
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    @override
    def write(self, name: str, content: bytes) -> None:
        write_bytes(self.directory / name, content)

    @override
    def remove(self, name: str) -> None:
        with explained_io_errors(self.directory):
            (self.directory / name).unlink(missing_ok=True)

    # --- the other machines see the files themselves ------------------------------------------------------

    @override
    def restore(self, stage: str, directory: Path) -> None:
        pass

    @override
    def keep(self, stage: str, directory: Path, *, files: Sequence[str], surely: bool) -> None:
        pass

    @override
    def kept_bytes(self, stage: str, file: str) -> int | None:
        return None

    @override
    def publish(self, stage: str, directory: Path, *, record: Json, without: Sequence[str]) -> None:
        pass

    @override
    def record(self, stage: str) -> Json | None:
        return None

    @override
    def fetch(self, stage: str, output: str, directory: Path) -> None:
        pass

    @override
    def forget_unfinished(self) -> None:
        pass


def open_storage(uri: str, *, rank: int = 0) -> Storage:
    """The storage that a request names, for a worker of this rank; the driver is as the first one.

    Nothing is touched; see `Storage.require_writable`.
    """
    if uri.startswith("file://") or "://" not in uri:
        return SharedDirectory(Path(uri.removeprefix("file://")))
    # fsspec and its drivers take half a second to import, which a laptop need not wait for.
    from ireko_trainer.pipeline.objectstore import ObjectStore

    return ObjectStore(uri, rank=rank)
