"""docs/security.md says of rights and exceptions what the chart and the operator say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ireko_operator.launch.platform import PolicyException

PAGE = Path(__file__).parents[3] / "docs" / "security.md"


def test_the_page_lists_the_operators_rights(rules: list[dict[str, Any]]) -> None:
    rows = re.findall(
        r"^\| `([\w./-]+)` \| ((?:`\w+` ?)+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    listed = {resource: verbs.replace("`", "").split() for resource, verbs in rows}
    given = {}
    for rule in rules:
        for resource in rule["resources"]:
            plural, slash, subresource = resource.partition("/")
            group = rule["apiGroups"][0]
            given[f"{plural}{'.' + group if group else ''}{slash}{subresource}"] = rule["verbs"]

    assert listed == given


def test_the_page_lists_every_exception() -> None:
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| exception | allows |")
    rows = re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.MULTILINE)

    assert rows == [word.value for word in PolicyException]
