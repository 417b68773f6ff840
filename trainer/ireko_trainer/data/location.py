"""Where a URI of the manifest points: a path beside the manifest, or a place behind an fsspec scheme."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.registry import known_implementations

from ireko_trainer.errors import UserError

_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""fsspec scheme → the extra of Ireko that brings its driver."""
_FRESH = {"use_listings_cache": False, "skip_instance_cache": True}


@dataclass(frozen=True, kw_only=True)
class Location:
    """A path on a file system that fsspec opened."""

    uri: str
    """As the manifest has it."""
    filesystem: Any
    path: str
    field: str
    """The manifest field that holds the URI, for error texts."""

    @property
    def shown(self) -> str:
        """The URI, with the absolute path where the manifest's is relative."""
        return self.uri if self.uri.endswith(self.path) else f"{self.uri} ({self.path})"


def scheme_of(uri: str) -> str:
    """The scheme of a URI; `file` for a plain path."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator else "file"


def local_path(uri: str, *, base_dir: Path) -> Path:
    """The path that a `file://` URI or a plain path means; relative ones start at `base_dir`."""
    path = uri[len("file://") :] if uri.lower().startswith("file://") else uri
    return (base_dir / path).resolve()


def locate(uri: str, *, base_dir: Path, field: str, fresh: bool = False) -> Location:
    """Find the file system for a URI, without touching what it points to.

    `fresh`: ask the store each time, since somebody else writes to it.

    Raises:
        UserError: nobody knows the scheme, or its driver is not installed.
    """
    scheme = scheme_of(uri)
    if scheme == "file":
        path = local_path(uri, base_dir=base_dir)
        return Location(uri=uri, filesystem=fsspec.filesystem("file"), path=str(path), field=field)
    try:
        filesystem, remote_path = fsspec.core.url_to_fs(uri, **(_FRESH if fresh else {}))
    except ImportError as error:
        raise UserError(f"{field}: {uri} needs a driver for {scheme}://; {_remedy(scheme)}") from error
    except ValueError as error:
        raise UserError(
            f"{field}: {uri} has the unknown scheme {scheme}://; use a path, file://, s3://, or another "
            "scheme that fsspec knows."
        ) from error
    return Location(uri=uri, filesystem=filesystem, path=remote_path, field=field)


def _remedy(scheme: str) -> str:
    if scheme in _EXTRAS:
        return f"install it with: pip install 'ireko[{_EXTRAS[scheme]}]'."
    return f"{known_implementations[scheme]['err'].rstrip('.')}."
