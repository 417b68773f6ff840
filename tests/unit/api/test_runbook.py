"""The runbook has an entry for every reason, and says what the reasons say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ireko_api.reasons import ConditionType, Reason
from ireko_api.runbook import anchor, markdown, types_of


def test_the_checked_in_page_is_the_generated_one(repository: Path) -> None:
    page = repository / "docs" / "runbook.md"
    assert page.read_text(encoding="utf-8") == markdown(), "run `make generate`"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_one_entry_with_its_meaning_its_cause_and_its_remedy(reason: Reason) -> None:
    entries = re.findall(rf"^### {reason}\n(.*?)(?=^### |\Z)", markdown(), flags=re.M | re.S)
    assert len(entries) == 1
    for word, text in (("Cause", reason.cause), ("Remedy", reason.remedy)):
        assert text
        assert text.endswith(".")
        assert f"* **{word}**: {text}\n" in entries[0]
    assert "* **Meaning**: " in entries[0]


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_names_the_conditions_that_have_it(reason: Reason) -> None:
    assert types_of(reason)
    assert re.search(r": \S.*\.$", reason.sentence)


def test_every_condition_can_be_explained() -> None:
    for kind in ConditionType:
        assert any(kind in types_of(reason) for reason in Reason), kind


def test_every_link_leads_somewhere() -> None:
    page = markdown()
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", page, flags=re.M)}
    links = set(re.findall(r"\(#(\w+)\)", page))
    assert links == headings == {anchor(reason) for reason in Reason}
