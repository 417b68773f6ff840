"""Whether what MLflow keeps of a member is what the trainer made: its manifest and the sizes of its files.

The bytes of a model are not read here. The manifest has the digest of every file and the family has the
digest of the manifest, so devices that load the model compare the rest; what an upload that was cut off or
a store that lost a file leaves behind is seen from the listing alone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow.artifacts
import yaml
from mlflow import MlflowClient
from mlflow.entities import FileInfo

from ireko_api.handoff import Family, Member
from ireko_operator.errors import DamagedBundleError, TrackingError

_MODEL_FILE = "MLmodel"
_MANIFEST_FILE = "manifest.json"
_BUNDLE = "bundle"


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
    model = _read(client, member, uri=uri, location=location, path=_MODEL_FILE)
    at = _bundle_path(_parsed(member, _MODEL_FILE, yaml.safe_load, model))
    if at is None:
        raise _damaged(member, f"its {_MODEL_FILE} names no {_BUNDLE}")
    listed = _read(client, member, uri=uri, location=location, path=f"{at}/{_MANIFEST_FILE}")
    manifest = _parsed(member, _MANIFEST_FILE, json.loads, listed)
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    found = hashlib.sha256(canonical.encode()).hexdigest()
    if found != member.bundle_sha256:
        raise _damaged(member, f"sha256 of its {_MANIFEST_FILE} is {found} instead of {member.bundle_sha256}")
    present = {file.path.removeprefix(f"{at}/"): file for file in _files(client, identity, at)}
    for name, entry in sorted(manifest["files"].items()):
        _verify_file(member, name, entry, present.get(name))


def _parsed(member: Member, name: str, parse: Callable[[bytes], Any], content: bytes) -> Any:
    try:
        return parse(content)
    except (ValueError, yaml.YAMLError) as error:
        raise _damaged(member, f"its {name} is cut off or overwritten") from error


def _verify_file(member: Member, name: str, entry: Mapping[str, Any], file: FileInfo | None) -> None:
    if file is None:
        raise _damaged(member, f"{name} is missing")
    if file.file_size is not None and file.file_size != entry["bytes"]:
        raise _damaged(member, f"{name} has {file.file_size} bytes instead of {entry['bytes']}")


def _read(client: MlflowClient, member: Member, *, uri: str, location: str, path: str) -> bytes:
    folder, _, name = path.rpartition("/")
    listed = client.list_logged_model_artifacts(model_id(member), folder or None)
    if all(file.path != path for file in listed):
        raise _damaged(member, f"{name} is missing")
    with tempfile.TemporaryDirectory(prefix="ireko-") as scratch:
        local = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{location}/{path}", dst_path=scratch, tracking_uri=uri
        )
        return Path(local).read_bytes()


def _bundle_path(model: Any) -> str | None:
    """Where in the model the bundle lies, as its MLmodel says."""
    flavors = (model if isinstance(model, dict) else {}).get("flavors") or {}
    artifacts = (flavors.get("python_function") or {}).get("artifacts") or {}
    path = (artifacts.get(_BUNDLE) or {}).get("path")
    return str(path) if path else None


def _files(client: MlflowClient, identity: str, path: str) -> Iterator[FileInfo]:
    for entry in client.list_logged_model_artifacts(identity, path):
        if entry.is_dir:
            yield from _files(client, identity, entry.path)
        else:
            yield entry


def _damaged(member: Member, what: str) -> DamagedBundleError:
    return DamagedBundleError(target=member.target, model=member.logged_model_uri, what=what)
