"""Files that are replaced whole or not at all, and sentences for disks that refuse them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ireko_trainer.errors import StorageFullError, StorageNotWritableError, UserError

Json = Mapping[str, Any]

_REFUSALS = (errno.EACCES, errno.EROFS, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_json(path: Path, content: Json) -> None:
    """Replace a JSON file atomically; readers see the old or the new content, never a part.

    Keys keep their order: layers are listed from the first to the last.
    """
    write_bytes(path, to_json(content))


def to_json(content: Json) -> bytes:
    """JSON for people to read as well."""
    return (json.dumps(content, indent=1) + "\n").encode()


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably."""
    write_whole(path, lambda file: file.write(content))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file atomically and durably by what `write` writes into it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with explained_io_errors(path):
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def sync_directory(directory: Path) -> None:
    """Make what was renamed in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained_io_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a sentence that says what to do."""
    with explained_full_disk(path):
        try:
            yield
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            raise StorageNotWritableError(
                f"{path}: cannot be written ({error.strerror}). On a cluster, give the pods the group of the "
                "volume (spec.compute.podTemplate.spec.securityContext.fsGroup) and a claim that is not mounted "
                "read-only; on a laptop, make the directory writable or choose another --workdir"
            ) from error


@contextmanager
def explained_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk, whichever library ran into it, into a sentence that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        where = getattr(error, "filename", None) or path
        raise StorageFullError(
            f"{where}: no space left on the device; free some (nothing is lost) and run the same command again"
        ) from error


def is_full_disk(error: Exception) -> bool:
    """Whether an error is about a disk without room, or a user without quota."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # Safetensors and others raise exceptions of their own, in which only the text names the cause.
    if any(os.strerror(code) in str(error) for code in _FULL):
        return True
    # PyTorch complains of where it stands in the file, after it could not write.
    before = error.__context__
    return isinstance(before, Exception) and is_full_disk(before)
