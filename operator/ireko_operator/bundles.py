"""Whether what MLflow keeps of a member is what the trainer made: its manifest and the sizes of its files.

The bytes of a model are not read here. The manifest has the digest of every file and the family has the
digest of the manifest, so devices that load the model compare the rest; what an upload that was cut off or
a store that lost a file leaves behind is seen from the listing alone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow.artifacts
import yaml
from mlflow import MlflowClient
from mlflow.entities import FileInfo

from ireko_api.handoff import Family, Member
from ireko_operator.errors import TrackingError

_MODEL_FILE = "MLmodel"
_MANIFEST_FILE = "manifest.json"
_BUNDLE = "bundle"


class DamagedBundleError(TrackingError):
    """The store does not hold what the trainer handed over; asking again is no use."""

    def __init__(self, member: Member, what: str) -> None:
        super().__init__(
            f"The model of {member.target!r} in MLflow ({member.logged_model_uri}) is not what was trained: "
            f"{what}. Restore it in the artifact store; nothing was registered for it.",
            refused=True,
        )


def verify(client: MlflowClient, *, uri: str, family: Family) -> None:
    """Compare every member's bundle with what the family says of it.

    Raises `DamagedBundleError` naming the first difference; what MLflow raises otherwise is left as it is.
    """
    for member in family.members:
        _verify(client, uri=uri, member=member)


def model_id(member: Member) -> str:
    """The id of a member's logged model; `TrackingError` where it has none."""
    scheme, _, identity = member.logged_model_uri.partition(":/")
    if scheme != "models" or not identity.startswith("m-"):
        raise TrackingError(
            f"The trainer handed over {member.logged_model_uri!r} for {member.target!r}, which is no "
            "logged model of MLflow (models:/m-…): use the trainer of the same release of Ireko.",
            refused=True,
        )
    return identity


def _verify(client: MlflowClient, *, uri: str, member: Member) -> None:
    identity = model_id(member)
    location = client.get_logged_model(identity).artifact_location
    at = _bundle_path(_read(client, member, uri=uri, location=location, path=_MODEL_FILE))
    if at is None:
        raise DamagedBundleError(member, f"its {_MODEL_FILE} names no {_BUNDLE}")
    manifest = json.loads(_read(client, member, uri=uri, location=location, path=f"{at}/{_MANIFEST_FILE}"))
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    found = hashlib.sha256(canonical.encode()).hexdigest()
    if found != member.bundle_sha256:
        raise DamagedBundleError(
            member, f"sha256 of its {_MANIFEST_FILE} is {found} instead of {member.bundle_sha256}"
        )
    present = {file.path.removeprefix(f"{at}/"): file for file in _files(client, identity, at)}
    for name, entry in sorted(manifest["files"].items()):
        _verify_file(member, name, entry, present.get(name))


def _verify_file(member: Member, name: str, entry: Mapping[str, Any], file: FileInfo | None) -> None:
    if file is None:
        raise DamagedBundleError(member, f"{name} is missing")
    if file.file_size is not None and file.file_size != entry["bytes"]:
        raise DamagedBundleError(member, f"{name} has {file.file_size} bytes instead of {entry['bytes']}")


def _read(client: MlflowClient, member: Member, *, uri: str, location: str, path: str) -> str:
    folder, _, name = path.rpartition("/")
    listed = client.list_logged_model_artifacts(model_id(member), folder or None)
    if all(file.path != path for file in listed):
        raise DamagedBundleError(member, f"{name} is missing")
    with tempfile.TemporaryDirectory(prefix="ireko-") as scratch:
        local = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{location}/{path}", dst_path=scratch, tracking_uri=uri
        )
        return Path(local).read_text(encoding="utf-8")


def _bundle_path(model_file: str) -> str | None:
    """Where in the model the bundle lies, as its MLmodel says."""
    flavors = (yaml.safe_load(model_file) or {}).get("flavors") or {}
    artifacts = (flavors.get("python_function") or {}).get("artifacts") or {}
    path = (artifacts.get(_BUNDLE) or {}).get("path")
    return str(path) if path else None


def _files(client: MlflowClient, identity: str, path: str) -> Iterator[FileInfo]:
    for entry in client.list_logged_model_artifacts(identity, path):
        if entry.is_dir:
            yield from _files(client, identity, entry.path)
        else:
            yield entry
