"""What the pages about the cluster tell a person to type exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ireko_api.spec import KIND
from ireko_api.validation import find_problems

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {
    name: (DOCS / name).read_text(encoding="utf-8")
    for name in ("install.md", "monitoring.md", "upgrade.md", "security.md")
}


def known(schema: dict[str, Any], path: str) -> bool:
    """Whether the chart has a value of that name; `*` stands for everything below."""
    node = schema
    for name in path.removesuffix(".*").split("."):
        while "properties" not in node:
            reference = node.get("$ref") or next((part["$ref"] for part in node.get("allOf", [])), None)
            if reference is None:
                return False
            node = schema["definitions"][reference.rsplit("/", 1)[1]]
        if name not in node["properties"]:
            return False
        node = node["properties"][name]
    return True


@pytest.mark.parametrize("page", PAGES)
def test_values_that_are_set_exist(page: str, schema: dict[str, Any]) -> None:
    values = re.findall(r"--set ([\w.-]+)=", PAGES[page])

    assert [value for value in values if not known(schema, value)] == []


@pytest.mark.parametrize("page", PAGES)
def test_values_that_tables_name_exist(page: str, schema: dict[str, Any]) -> None:
    head = r"^\| value \| \w+ \|\n\|[-|]+\|\n((?:\|.*\|\n)+)"
    tables = re.findall(head, PAGES[page], re.MULTILINE)
    cells = [line.split("|")[1] for table in tables for line in table.splitlines()]
    values = [value for cell in cells for value in re.findall(r"`([\w.*]+)`", cell)]

    assert [value for value in values if not known(schema, value)] == []
    assert values or page not in ("install.md", "monitoring.md")


def test_the_installation_pages_run_is_a_valid_one() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGES["install.md"], re.DOTALL)
    runs = [manifest for block in blocks if (manifest := yaml.safe_load(block)).get("kind") == KIND]

    assert len(runs) == 1
    assert find_problems(runs[0]) == []


def test_the_installation_pages_values_are_those_of_the_chart(schema: dict[str, Any]) -> None:
    blocks = [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGES["install.md"], re.DOTALL)
    ]
    values = [name for block in blocks if "kind" not in block for name in block]

    assert values
    assert [name for name in values if not known(schema, name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", PAGES[page])

    assert [link for link in links if not (DOCS / link).exists()] == []
