"""Where a value is one of a few words, they are the operator's words."""

from __future__ import annotations

from typing import Any, get_args

from ireko_operator.launch.platform import PolicyException, SubmissionMode
from ireko_operator.process.logs import LogFormat


def test_exceptions(schema: dict[str, Any]) -> None:
    assert schema["properties"]["podExceptions"]["items"]["enum"] == [word.value for word in PolicyException]


def test_submission_modes(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]["submissionMode"]["enum"]) == {word.value for word in SubmissionMode}


def test_log_formats(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]["log"]["properties"]["format"]["enum"]) == set(get_args(LogFormat))
