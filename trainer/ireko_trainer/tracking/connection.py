"""One MLflow tracking server, spoken to with patience and a sentence for when patience ends.

MLflow's own defaults wait minutes in one call; here a call fails within seconds and is repeated from outside,
so that an outage shows at once in the log and ends where the caller says. A SQLite file that another process
writes to is the same case: "database is locked" passes.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

# Read by MLflow at each request; what the user exported wins.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ireko_trainer.errors import StorageFullError, UserError

T = TypeVar("T")

PATIENCE_VARIABLE = "IREKO_TRACKING_PATIENCE_SECONDS"
"""Environment variable that overrides `PATIENCE_SECONDS`."""
PATIENCE_SECONDS = 300.0
"""How long a call that must succeed is repeated: an MLflow pod that moves to another node takes less."""

_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 10.0
_RETRIED_STATUS = (408, 429)
_FULL_DATABASE = "database or disk is full"
"""What SQLite says; MLflow hands it on as an error of the server, which would pass for an outage."""
_OBJECT_STORE_CLIENTS = ("botocore", "boto3", "google", "azure")

log = logging.getLogger(__name__)
# A locked database is retried and reported here; MLflow would print a traceback for each try.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class TrackingUnreachableError(UserError):
    """MLflow did not answer for as long as a run can wait."""

    reason = "TrackingUnreachable"


class Connection:
    """A client of one tracking server that repeats what an outage made fail.

    Its patience is what is given here, else what the environment says, else `PATIENCE_SECONDS`.
    """

    def __init__(self, uri: str, *, patience_seconds: float | None = None) -> None:
        self.uri = uri
        self.client: Any = None
        self._patience = _wanted_patience() if patience_seconds is None else patience_seconds
        # Opening a SQLite store touches the database already.
        self.client = self.call(partial(MlflowClient, tracking_uri=uri, registry_uri=uri))

    def call(self, action: Callable[[], T], *, patience_seconds: float | None = None) -> T:
        """The result of `action`, repeated while the server is away.

        `patience_seconds` can only shorten the patience of the connection. Raises TrackingUnreachableError when
        patience ends, StorageFullError when its database has no room, UserError when the server refuses the
        credentials, and whatever else the server says as it is.
        """
        patience = self._patience if patience_seconds is None else min(patience_seconds, self._patience)
        deadline = time.monotonic() + patience
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                return action()
            except Exception as error:
                # What MLflow raises for an outage depends on the store and on the artifact backend.
                if _FULL_DATABASE in str(error):
                    raise StorageFullError(self._full(error)) from error
                if not is_outage(error):
                    raise self._explained(error) from error
                if time.monotonic() + delay > deadline:
                    raise TrackingUnreachableError(self._unreachable(error, patience)) from error
                log.warning("MLflow at %s does not answer, trying again in %.1f s", redacted(self.uri), delay)
            time.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    def _unreachable(self, error: Exception, patience: float) -> str:
        return (
            f"MLflow at {redacted(self.uri)} did not answer for {patience:.0f} s ({_first_line(error)}). "
            "Start it or correct spec.registry.trackingUri; nothing is lost, and the same command goes on "
            "where this attempt stood"
        )

    def _full(self, error: Exception) -> str:
        return (
            f"MLflow at {redacted(self.uri)} has no room left for its database ({_first_line(error)}); free some "
            "where it lies (nothing is lost) and run the same command again"
        )

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
            return UserError(
                f"MLflow at {redacted(self.uri)} refused the request ({_first_line(error)}); set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to an "
                "account that may write"
            )
        return error


def _wanted_patience() -> float:
    text = os.environ.get(PATIENCE_VARIABLE, "")
    if not text:
        return PATIENCE_SECONDS
    try:
        wanted = float(text)
    except ValueError:
        wanted = math.nan
    if not 0 <= wanted < math.inf:
        raise UserError(
            f"{PATIENCE_VARIABLE} is {text!r}; expected seconds from 0, e.g. {PATIENCE_SECONDS:.0f}"
        )
    return wanted


def is_outage(error: Exception) -> bool:
    """Whether the same call may succeed later without anybody changing the request."""
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
        return status >= 500 or status in _RETRIED_STATUS
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in _RETRIED_STATUS
    if isinstance(error, (requests.RequestException, ConnectionError, TimeoutError)):
        return True
    return type(error).__module__.startswith(_OBJECT_STORE_CLIENTS)


def redacted(uri: str) -> str:
    """A URI without the password that database URIs carry."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
