"""Errors of the control plane whose text is written for the person at the prompt.

Each names what was found and what to do about it; the command line prints the text and exits with
`exit_code`. Any other exception is a defect of Ireko and shows its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class OperatorError(Exception):
    """Something that the user can mend; the message says what and how."""

    exit_code = 1


class UsageError(OperatorError):
    """The command was given something that it cannot take."""

    exit_code = 2


class ManifestError(OperatorError):
    """The manifest is not one; `lines` holds every problem, one line each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class LockedError(OperatorError):
    """Somebody else is at work on the same run."""


class TrackingError(OperatorError):
    """MLflow did not answer; with `refused`, it did and said no, so that asking again is no use."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class DamagedBundleError(TrackingError):
    """The artifact store does not hold what the trainer handed over; no asking helps until somebody restores it."""

    def __init__(self, *, target: str, model: str, what: str) -> None:
        super().__init__(
            f"The model of {target!r} in MLflow ({model}) is not what was trained: {what}. Restore it in the artifact "
            "store, and the run goes on by itself; nothing is registered before.",
            refused=True,
        )


class StorageError(OperatorError):
    """A file could not be written or read."""


_WHAT_TO_DO = {
    errno.ENOSPC: "the disk is full: make room there, or choose another --workdir",
    errno.EDQUOT: "your disk quota is used up: make room there, or choose another --workdir",
    errno.EACCES: "permission denied: choose a --workdir that you may write to",
    errno.EPERM: "permission denied: choose a --workdir that you may write to",
    errno.EROFS: "the file system is read-only: choose another --workdir",
    errno.ENOTDIR: "a part of the path is a file, not a directory: choose another --workdir",
    errno.EEXIST: "a file of that name is in the way: move it, or choose another --workdir",
}


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = _WHAT_TO_DO.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(f"Cannot write {path}: {remedy}.") from error
