"""What is waited for, what is told at once, and what a message may show."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from ireko_trainer.errors import StorageFullError, UserError
from ireko_trainer.tracking.connection import (
    PATIENCE_VARIABLE,
    Connection,
    TrackingUnreachableError,
    is_outage,
    redacted,
)


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (MlflowException("connection refused", error_code=INTERNAL_ERROR), True),
        (MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("slow down", error_code=REQUEST_LIMIT_EXCEEDED), True),
        (MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST), False),
        (MlflowException("bad name", error_code=INVALID_PARAMETER_VALUE), False),
        (requests.ConnectionError("refused"), True),
        (http_error(503), True),
        (http_error(413), False),
        (TimeoutError("read"), True),
        (PermissionError("artifacts directory"), False),
        (OSError(28, "no space left on device"), False),
        (TypeError("a defect"), False),
    ],
)
def test_only_what_may_pass_by_itself_is_waited_for(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


def test_an_outage_that_outlasts_patience_names_the_server_and_says_that_nothing_is_lost() -> None:
    with pytest.raises(TrackingUnreachableError) as caught:
        Connection("http://127.0.0.1:1", patience_seconds=0).call(_refused)
    assert caught.value.reason == "TrackingUnreachable"
    assert "http://127.0.0.1:1" in str(caught.value)
    assert "same command goes on" in str(caught.value)


def test_a_database_without_room_is_told_at_once_and_is_no_outage(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "mlflow.db")
    database.execute("CREATE TABLE metrics (value BLOB)")
    database.execute("PRAGMA max_page_count = 3")
    calls = []

    def write() -> None:
        calls.append(1)
        try:
            database.execute("INSERT INTO metrics VALUES (zeroblob(100000))")
        except sqlite3.OperationalError as error:
            # As MLflow's store does.
            raise MlflowException(f"({type(error)}) {error}", error_code=INTERNAL_ERROR) from error

    with pytest.raises(
        StorageFullError, match=r"MLflow at http://127\.0\.0\.1:1 has no room left .*nothing is lost"
    ):
        Connection("http://127.0.0.1:1").call(write)
    assert len(calls) == 1


def test_refused_credentials_are_not_retried_and_name_the_variables_to_set() -> None:
    calls = []

    def forbidden() -> None:
        calls.append(1)
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME"):
        Connection("http://127.0.0.1:1").call(forbidden)
    assert len(calls) == 1


def test_a_database_password_never_reaches_a_message() -> None:
    assert redacted("postgresql://ireko:s3cret@db:5432/mlflow") == "postgresql://ireko:***@db:5432/mlflow"
    assert redacted("sqlite:////var/mlflow.db") == "sqlite:////var/mlflow.db"


def test_the_environment_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0")
    with pytest.raises(TrackingUnreachableError, match="did not answer for 0 s"):
        Connection("http://127.0.0.1:1").call(_refused)

    monkeypatch.setenv(PATIENCE_VARIABLE, "two minutes")
    with pytest.raises(UserError, match=f"{PATIENCE_VARIABLE} is 'two minutes'; expected seconds from 0"):
        Connection("http://127.0.0.1:1")


def test_last_words_are_no_more_patient_than_the_run() -> None:
    with pytest.raises(TrackingUnreachableError, match="for 0 s"):
        Connection("http://127.0.0.1:1", patience_seconds=0).call(_refused, patience_seconds=60)


def _refused() -> None:
    raise requests.ConnectionError("refused")
