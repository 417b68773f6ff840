"""The reference page says what the models say."""

from __future__ import annotations

from pathlib import Path

from ireko_api.crd import open_api_schema
from ireko_api.reasons import ConditionType, Reason
from ireko_api.reference import markdown
from ireko_api.schema import walk


def test_the_checked_in_page_is_the_generated_one(repository: Path) -> None:
    page = repository / "docs" / "reference" / "compressionrun.md"
    assert page.read_text(encoding="utf-8") == markdown(), "run `make generate`"


def test_every_field_of_the_crd_is_on_the_page() -> None:
    page = markdown()
    names = {path.rsplit(".", 1)[-1] for path, _ in walk(open_api_schema()) if path and path[-1] not in "]}"}
    assert [name for name in sorted(names) if f"| `{name}` |" not in page] == []


def test_every_table_is_rectangular() -> None:
    rows = [line for line in markdown().splitlines() if line.startswith("|")]
    assert rows
    assert {row.replace("\\|", "").count("|") for row in rows} == {3, 5}


def test_every_word_of_a_condition_is_explained() -> None:
    page = markdown()
    for word in (*ConditionType, *Reason):
        assert word.sentence.endswith(".")
        assert f"| `{word}` | {word.sentence} |" in page
