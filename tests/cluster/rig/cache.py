"""Where built programs stay between sessions, and how they get there without ever being half there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock


def cache_directory() -> Path:
    """The rig's folder in the user's cache directory (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ireko" / "cluster"


def key_of(files: Iterable[Path]) -> str:
    """A short digest of the contents of `files`, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The cached folder `name`; where it is absent, `make` fills an empty folder that then takes its place.

    A build that is cut off leaves no folder of that name, and two processes never build the same thing twice.
    """
    place = cache_directory() / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f"{name}.lock")):
        if place.is_dir():
            return place
        started = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place.parent))
        try:
            make(started)
            started.chmod(0o755)
            started.rename(place)
        except BaseException:
            shutil.rmtree(started, ignore_errors=True)
            raise
    return place
