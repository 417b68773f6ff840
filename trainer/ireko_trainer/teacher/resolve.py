"""From the URI of a teacher to a local directory that holds one checkpoint.

Downloads are kept under a key that changes with what the URI points to (the commit, the model version, the
sizes and times of the remote files), so that a moved alias or a rewritten bucket is never answered from an
old copy, and an unchanged one is never fetched twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from filelock import FileLock
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ireko_trainer.data.location import local_path, locate, scheme_of
from ireko_trainer.errors import UserError
from ireko_trainer.teacher.checkpoint import find_checkpoint, weight_files

_FIELD = "spec.teacher.model"
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]
"""Configuration, tokenizer, and code that runs only when the manifest trusts it."""


def resolve(*, uri: str, base_dir: Path, revision: str | None, cache_dir: Path) -> Path:
    """A local directory with the checkpoint (`config.json`, weights, tokenizer) that `uri` names.

    Args:
        uri: `hf://org/name`, a path or `file://path`, `package://package/dir`, `models:/name@alias` or any
            fsspec scheme. A directory that wraps the checkpoint, as registered bundles do, is looked through.
        base_dir: where relative paths start.
        revision: branch, tag or commit; only for `hf://`.
        cache_dir: where downloads go; safe to share between processes.

    Raises:
        UserError: nothing usable is there; the text names the URI and the remedy.
    """
    scheme = "models" if uri.startswith("models:/") else scheme_of(uri)
    if revision is not None and scheme != "hf":
        raise UserError(f"spec.teacher.revision: {revision!r} is for hf:// models, not for {uri}; remove it.")
    if scheme == "hf":
        # The root of a hub snapshot is the checkpoint; its subfolders are other formats of the same model.
        return _from_hub(uri.removeprefix("hf://"), revision=revision, cache_dir=cache_dir)
    if scheme == "file":
        return find_checkpoint(_local_directory(uri, base_dir=base_dir), uri=uri)
    if scheme == "package":
        return find_checkpoint(_package_directory(uri), uri=uri)
    if scheme == "models":
        return find_checkpoint(_from_registry(uri, cache_dir=cache_dir), uri=uri)
    return find_checkpoint(_from_remote(uri, base_dir=base_dir, cache_dir=cache_dir), uri=uri)


def _local_directory(uri: str, *, base_dir: Path) -> Path:
    directory = local_path(uri, base_dir=base_dir)
    if directory.is_dir():
        return directory
    state = "is a file" if directory.is_file() else "does not exist"
    raise UserError(
        f"{_FIELD}: {uri} means {directory}, which {state}; name the directory with the teacher's "
        "config.json. Relative paths start at the manifest's directory; a model of the Hugging Face hub is "
        "written hf://org/name."
    )


def _package_directory(uri: str) -> Path:
    package, _, inside = uri.removeprefix("package://").partition("/")
    parts = Path(inside).parts
    if not package.isidentifier() or ".." in parts or Path(inside).is_absolute():
        raise UserError(
            f"{_FIELD}: {uri} is not of the form package://<python package>/<directory inside it>."
        )
    spec = importlib.util.find_spec(package)  # looks the package up without running it
    if spec is None:
        raise UserError(
            f"{_FIELD}: {uri} needs the Python package {package}, which is not installed; install it where "
            "the trainer runs."
        )
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    for root in roots:
        if root.joinpath(*parts).is_dir():
            return root.joinpath(*parts)
    raise UserError(f"{_FIELD}: the Python package {package} has no directory {inside!r}; correct {uri}.")


def _from_hub(repository: str, *, revision: str | None, cache_dir: Path) -> Path:
    name = f"hf://{repository}" + (f" at revision {revision}" if revision else "")

    def snapshot(patterns: list[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, cache_dir=cache_dir / "hub", allow_patterns=patterns
            )
        )

    try:
        directory = snapshot([*_SMALL_FILES, "*.safetensors"])
        if not weight_files(directory):
            directory = snapshot([*_SMALL_FILES, "pytorch_model*.bin"])
    except HFValidationError as error:
        raise UserError(f"{_FIELD}: {name} is not of the form hf://organisation/name.") from error
    except GatedRepoError as error:
        raise UserError(
            f"{_FIELD}: {name} is gated; accept its terms on the hub and give the trainer a token in "
            "HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"spec.teacher.revision: {name} does not exist; name a branch, tag or commit of the repository."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{_FIELD}: {name} does not exist, or is private; correct the name, or give the trainer a token "
            "in HF_TOKEN."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{_FIELD}: {name} cannot be downloaded ({_first_line(error)}); check the trainer's network, or "
            "give a local copy as file://…"
        ) from error
    return directory


def _from_registry(uri: str, *, cache_dir: Path) -> Path:
    # MLflow takes seconds to import; only this scheme needs it.
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    try:
        pinned, identity = _registered_version(uri)

        def download(target: Path) -> None:
            mlflow.artifacts.download_artifacts(artifact_uri=pinned, dst_path=str(target))

        return _downloaded(identity, download=download, cache_dir=cache_dir)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{_FIELD}: {uri} cannot be read from the MLflow registry ({_first_line(error)}); check the "
            "name, the version or alias, and the tracking server."
        ) from error


def _registered_version(uri: str) -> tuple[str, str]:
    """The version behind an alias at this moment: its own URI, and a key that no other version shares."""
    import mlflow
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    client = mlflow.MlflowClient()
    # Name and version, or the id of a logged model alone.
    parts = [str(part) for part in get_model_name_and_version(client, uri)]
    pinned = "models:/" + "/".join(parts)
    created = client.get_model_version(*parts).creation_timestamp if len(parts) == 2 else ""
    return pinned, f"{mlflow.get_registry_uri()} {pinned} {created}"


def _from_remote(uri: str, *, base_dir: Path, cache_dir: Path) -> Path:
    location = locate(uri, base_dir=base_dir, field=_FIELD)
    filesystem = location.filesystem
    try:
        files = sorted(filesystem.find(location.path))
        identity = "\n".join([uri, *(filesystem.ukey(file) for file in files)])

        def download(target: Path) -> None:
            filesystem.get(location.path.rstrip("/") + "/", f"{target}/", recursive=True)

        if files:
            return _downloaded(identity, download=download, cache_dir=cache_dir)
    # Every driver raises errors of its own (botocore's, aiohttp's, …), and all of them mean: not reachable.
    except Exception as error:
        raise UserError(
            f"{_FIELD}: {uri} cannot be downloaded ({_first_line(error)}); check the address, the "
            "credentials and the trainer's network."
        ) from error
    raise UserError(
        f"{_FIELD}: there is nothing at {uri}; name the directory with the teacher's config.json."
    )


def _downloaded(identity: str, *, download: Callable[[Path], None], cache_dir: Path) -> Path:
    """The directory that `download` filled for this identity, now or earlier; never a half-filled one."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    directory = cache_dir / hashlib.sha256(identity.encode()).hexdigest()[:32]
    with FileLock(f"{directory}.lock"):
        if not directory.is_dir():
            partial = Path(tempfile.mkdtemp(dir=cache_dir, prefix="partial-"))
            try:
                download(partial)
                partial.rename(directory)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return directory


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
