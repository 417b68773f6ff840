"""Logs for programs: one object per line, the run it is about, no secrets, no chatter of libraries."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ireko_operator.process import logs


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, threading.excepthook)
    stream = io.StringIO()
    logs.configure(form="json", level="info", stream=stream)
    yield stream
    root.handlers[:], level, threading.excepthook = before
    root.setLevel(level)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_is_one_object_with_time_level_logger_and_message(written: io.StringIO) -> None:
    logging.getLogger("ireko_operator.x").warning("Two\nlines and %s.", "ünïcode")
    (line,) = lines(written)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "warning", "logger": "ireko_operator.x", "message": "Two\nlines and ünïcode."}


def test_lines_name_the_run_that_they_are_about_and_no_other(written: io.StringIO) -> None:
    log = logging.getLogger("a")
    other = threading.Thread(target=lambda: log.info("Elsewhere."))
    with logs.about(("team", "run"), uid="1-2"):
        log.info("Here.")
        other.start()
        other.join()
    log.info("After.")
    here, elsewhere, after = lines(written)
    assert here["run"] == {"namespace": "team", "name": "run", "uid": "1-2"}
    assert "run" not in elsewhere
    assert "run" not in after


def test_an_exception_is_part_of_its_line(written: io.StringIO) -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("a").exception("It failed.")
    (line,) = lines(written)
    assert line["message"] == "It failed."
    assert "ValueError: bad" in line["error"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@mlflow:5000/x is away", "http://me:***@mlflow:5000/x is away"),
        ("{'Authorization': 'Bearer eyJhbGciOi.abc-_.x='}", "{'Authorization': 'Bearer ***'}"),
        ("basic Basic dXNlcjpwYXNz", "basic Basic ***"),
        ("http://mlflow:5000 answered 10:30@noon", "http://mlflow:5000 answered 10:30@noon"),
    ],
)
def test_passwords_and_credentials_are_blotted_out(written: io.StringIO, text: str, shown: str) -> None:
    logging.getLogger("a").info("%s", text)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logging.getLogger("a").exception("It failed.")
    first, second = lines(written)
    assert first["message"] == shown
    assert shown in second["error"]


def test_libraries_are_heard_only_when_it_matters(written: io.StringIO) -> None:
    logging.getLogger("kopf.objects").info("Handler 'x' succeeded.")
    logging.getLogger("urllib3.connectionpool").warning("Retrying.")
    logging.getLogger("kopf._core.reactor.running").warning(
        "OS signals are ignored: running not in the main thread."
    )
    logging.getLogger("kopf._core.reactor").warning("The watch-stream broke.")
    assert [line["message"] for line in lines(written)] == ["The watch-stream broke."]


def test_a_thread_that_ends_by_an_error_is_logged(written: io.StringIO) -> None:
    def fail() -> None:
        raise ValueError("bad")

    thread = threading.Thread(target=fail, name="prober")
    thread.start()
    thread.join()
    (line,) = lines(written)
    assert (line["level"], line["message"]) == ("critical", "The thread `prober` ended by an error.")
    assert "ValueError: bad" in line["error"]
