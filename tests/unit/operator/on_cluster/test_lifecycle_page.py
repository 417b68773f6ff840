"""The page about the life of a run says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from ireko_api.reasons import ConditionType, Reason
from ireko_api.spec import Compute
from ireko_api.status import CompressionRunStatus, Phase
from ireko_operator.reconcile.on_cluster import DELETION_GRACE
from ireko_operator.reconcile.retry import FINAL, LONGEST_BACKOFF


@pytest.fixture(scope="module")
def page() -> str:
    root = Path(__file__).resolve().parents[4]
    return (root / "docs" / "lifecycle.md").read_text(encoding="utf-8")


def diagram(page: str, kind: str) -> str:
    (found,) = re.findall(rf"```mermaid\n{kind}\n(.*?)```", page, flags=re.S)
    return str(found)


def test_every_phase_is_explained_and_those_of_a_cluster_are_drawn(page: str) -> None:
    phases = set(get_args(Phase))
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M)) == phases
    drawn = set(re.findall(r"\b[A-Z][a-z]+\b(?= -->|:|$)", diagram(page, "stateDiagram-v2"), flags=re.M))
    assert drawn == phases - {"Interrupted"}


def test_the_conditions_are_drawn_in_their_order_with_reasons_of_their_own(page: str) -> None:
    from ireko_api.runbook import types_of

    lines = diagram(page, "flowchart LR").splitlines()
    assert lines[0].split(" --> ") == [f"    {ConditionType.VALID}", *list(ConditionType)[1:]]
    for line in lines[1:]:
        kind, _, label = line.strip().partition(" -.- ")
        for reason in re.findall(r"[A-Z][A-Za-z]+", re.sub(r"<br/>", " ", label)):
            assert ConditionType(kind) in types_of(Reason(reason)), (kind, reason)


def test_the_final_reasons_are_listed(page: str) -> None:
    (listed,) = re.findall(r"<!-- final reasons -->(.*?)<!-- end -->", page, flags=re.S)
    assert set(re.findall(r"`(\w+)`", listed)) == set(FINAL)


def test_the_times_are_those_of_the_code(page: str) -> None:
    assert LONGEST_BACKOFF.total_seconds() == 600
    assert "at most 10 min" in page
    assert DELETION_GRACE.total_seconds() == 300
    assert "five\nminutes" in page


def test_every_field_that_is_named_exists(page: str) -> None:
    compute = {field.alias for field in Compute.model_fields.values()}
    status = {field.alias for field in CompressionRunStatus.model_fields.values()}
    assert set(re.findall(r"`compute\.(\w+)`", page)) <= compute
    assert set(re.findall(r"`status\.(\w+)`", page)) <= status
