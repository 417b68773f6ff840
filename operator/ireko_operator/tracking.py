"""The reading side of MLflow: the operator learns from it how far a trainer is and what it made.

The trainer writes one parent run per identity and specification and tags it; everything here starts from
those two tags, so that nothing has to be remembered between two invocations. Import this module only where
MLflow is needed: importing MLflow takes seconds.
"""

from __future__ import annotations

import logging
import os
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from ireko_api.handoff import (
    FAMILY_ARTIFACT,
    TAG_FAILURE,
    TAG_PROGRESS,
    TAG_SPEC_DIGEST,
    TAG_UID,
    Failure,
    Family,
    Progress,
)
from ireko_operator.errors import OperatorError, TrackingError
from ireko_operator.reconcile.state import TrackedRun

_SETTINGS = {
    # The client's own patience is 7 retries of 120 s each, during which the user would see nothing.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Settings of the MLflow client in this process, where the user has not set them."""


_PAGE = 1000

log = logging.getLogger(__name__)


def connect(uri: str) -> MlflowClient:
    """A client of the tracking store at `uri`; a new database is created on the first call to it."""
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it announces every retry
    with answered(uri):
        # A database store resolves `models:/m-…` through the process-wide URI, whatever the client was given.
        mlflow.set_tracking_uri(uri)
        return MlflowClient(tracking_uri=uri)


@cache
def shared(uri: str) -> MlflowClient:
    """The client of this process for the tracking store at `uri`, made once: for a process that lives long."""
    return connect(uri)


_TRANSIENT = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"}
"""The error codes of a store that is away or busy; a connection that cannot be made is an INTERNAL_ERROR."""


@contextmanager
def answered(uri: str) -> Iterator[None]:
    """Turn MLflow's refusals into a `TrackingError` that names the store and what to do."""
    try:
        yield
    except MlflowException as error:
        if error.error_code in _TRANSIENT:
            raise TrackingError(
                f"MLflow at {without_password(uri)} does not answer ({_first_line(error, uri)}). "
                "Check that it runs and that this is its address, or name another one with --tracking-uri "
                "or spec.registry.trackingUri."
            ) from error
        raise TrackingError(
            f"MLflow at {without_password(uri)} refused what was asked ({error.error_code}: "
            f"{_first_line(error, uri)}).",
            refused=True,
        ) from error
    except ImportError as error:
        raise TrackingError(
            f"MLflow at {without_password(uri)} needs the Python package {error.name!r}, which is not "
            "installed: "
            f"`pip install 'ireko[trainer]'` brings what local databases need.",
            refused=True,
        ) from error


@contextmanager
def with_artifacts(uri: str) -> Iterator[None]:
    """The same where artifacts are read: whatever their store raises becomes a `TrackingError`, too."""
    try:
        with answered(uri):
            yield
    except OperatorError:
        raise
    except Exception as error:
        # Every artifact store raises the exceptions of a library of its own.
        raise TrackingError(
            f"The artifacts of MLflow at {without_password(uri)} cannot be read ({type(error).__name__}: "
            f"{_first_line(error, uri)}). Check the artifact store and the operator's access to it."
        ) from error


def find_run(
    client: MlflowClient, *, uri: str, experiment: str, uid: str, spec_digest: str
) -> TrackedRun | None:
    """The parent run of one run and specification, or None before the trainer has begun."""
    with answered(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = client.search_runs(
            [found.experiment_id],
            f"tags.`{TAG_UID}` = '{uid}' AND tags.`{TAG_SPEC_DIGEST}` = '{spec_digest}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
    return _tracked(runs[0]) if runs else None


def experiment_id(client: MlflowClient, *, uri: str, name: str) -> str | None:
    """The id of an experiment, or None before the first trainer has made it."""
    with answered(uri):
        found = client.get_experiment_by_name(name)
    return None if found is None else str(found.experiment_id)


def running(
    client: MlflowClient, *, uri: str, experiments: Sequence[str], wanted: Collection[tuple[str, str]]
) -> dict[tuple[str, str], TrackedRun]:
    """The parent runs that are running now, by uid and digest of the specification, of those `wanted`.

    One search for all of them, in pages; it ends with the page that completes them.
    """
    found: dict[tuple[str, str], TrackedRun] = {}
    token: str | None = None
    while experiments and len(found) < len(wanted):
        with answered(uri):
            page = client.search_runs(
                list(experiments),
                f"attributes.status = 'RUNNING' AND tags.`{TAG_UID}` != ''",
                order_by=["attributes.start_time DESC"],
                max_results=_PAGE,
                page_token=token,
            )
        for run in page:
            identity = (run.data.tags.get(TAG_UID, ""), run.data.tags.get(TAG_SPEC_DIGEST, ""))
            if identity in wanted:
                try:
                    found[identity] = _tracked(run)
                except TrackingError as error:
                    log.warning("%s", error)  # one run that cannot be read hides none of the others
        token = page.token
        if not token:
            break
    return found


def load_family(client: MlflowClient, run: TrackedRun, *, uri: str) -> Family | None:
    """What the run handed over, or None while it has not finished."""
    with answered(uri):
        if all(entry.path != FAMILY_ARTIFACT for entry in client.list_artifacts(run.run_id)):
            return None
        with tempfile.TemporaryDirectory(prefix="ireko-") as directory:
            text = Path(client.download_artifacts(run.run_id, FAMILY_ARTIFACT, directory)).read_text(
                encoding="utf-8"
            )
    try:
        return Family.model_validate_json(text)
    except ValidationError as error:
        raise TrackingError(
            f"{FAMILY_ARTIFACT} of the MLflow run {run.run_id} cannot be read by this version of Ireko "
            f"({error.errors()[0]['msg']}): delete that run in MLflow to make the family anew.",
            refused=True,
        ) from error


def artifact_location(run: TrackedRun, path: str) -> str:
    """Where an artifact of the run is: a path if the store is a directory of this machine, else a URI."""
    parsed = urllib.parse.urlparse(run.artifact_uri)
    if parsed.scheme in ("", "file"):
        return str(Path(urllib.request.url2pathname(parsed.path)) / path)
    return f"{run.artifact_uri}/{path}"


def without_password(uri: str) -> str:
    """The URI as it may be shown."""
    parsed = urllib.parse.urlparse(uri)
    if parsed.password is None:
        return uri
    host = parsed.netloc.rpartition("@")[2]
    return parsed._replace(netloc=f"{parsed.username}:***@{host}").geturl()


def _tracked(run: Run) -> TrackedRun:
    progress, failure = run.data.tags.get(TAG_PROGRESS), run.data.tags.get(TAG_FAILURE)
    try:
        return TrackedRun(
            run_id=run.info.run_id,
            artifact_uri=run.info.artifact_uri,
            progress=Progress.model_validate_json(progress) if progress else None,
            failure=Failure.model_validate_json(failure) if failure else None,
        )
    except ValidationError as error:
        raise TrackingError(
            f"The tags {TAG_PROGRESS} and {TAG_FAILURE} of the MLflow run {run.info.run_id} cannot be read by "
            f"this version of Ireko ({error.errors()[0]['msg']}): use the trainer of the same release.",
            refused=True,
        ) from error


def _first_line(error: Exception, uri: str) -> str:
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    text = text.replace(uri, without_password(uri))  # MLflow repeats the address with the password in it
    return text if len(text) <= 300 else f"{text[:300]}…"
