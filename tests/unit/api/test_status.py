"""A status is read back as it was written, by this version and by others."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import get_args

import pytest

from ireko_api.handoff import Failure
from ireko_api.reasons import ConditionType, Reason
from ireko_api.status import Attempt, CompressionRunStatus, Condition, MemberStatus, ProgressStatus

NOON = datetime(2026, 1, 31, 12, 0, 0, 654321, tzinfo=UTC)


def a_status() -> CompressionRunStatus:
    return CompressionRunStatus(
        phase="Running",
        observed_generation=1,
        conditions=(
            Condition(
                type=ConditionType.VALID, status="True", last_transition_time=NOON, reason=Reason.ACCEPTED
            ),
        ),
        attempts=(Attempt(number=1, started_at=NOON),),
        progress=ProgressStatus(stage="widths", step=3, total_steps=600, percent=12, eta_seconds=90),
        members=(
            MemberStatus(
                target="gateway", model_uri="models:/a@gateway", version="1", parameters=10, size_bytes=20,
                average_bits=4.25, metrics={"accuracy": 0.9},
            ),
        ),
    )  # fmt: skip


def test_a_status_survives_its_own_json() -> None:
    status = a_status()
    assert CompressionRunStatus.model_validate_json(status.model_dump_json(by_alias=True)) == status


def test_times_are_kept_to_the_second_as_kubernetes_writes_them() -> None:
    assert a_status().conditions[0].last_transition_time == NOON.replace(microsecond=0)


def test_a_field_of_a_later_version_is_ignored() -> None:
    read = CompressionRunStatus.model_validate({"phase": "Running", "ray": {"dashboard": "x"}})
    assert read == CompressionRunStatus(phase="Running")


@pytest.mark.parametrize("word", [*ConditionType, *Reason])
def test_the_words_of_conditions_are_camel_case(word: str) -> None:
    assert re.fullmatch(r"([A-Z][a-z]+)+", word)


def test_a_reason_is_found_by_its_word() -> None:
    assert Reason("WorkerLost") is Reason.WORKER_LOST


def test_every_failure_of_the_trainer_is_a_reason() -> None:
    words = get_args(Failure.model_fields["reason"].annotation)
    assert words
    assert set(words) <= set(Reason)
