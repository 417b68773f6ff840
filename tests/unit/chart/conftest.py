"""The chart's files, read as what they are; the cluster tests render them with the real Helm."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # test modules share promql.py

CHART = Path(__file__).parents[3] / "charts" / "ireko"


@pytest.fixture(scope="session")
def chart() -> Path:
    return CHART


@pytest.fixture(scope="session")
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="session")
def rules() -> list[dict[str, Any]]:
    """The rules of the operator's role: plain YAML inside the template that both kinds of role take them from."""
    helpers = (CHART / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    found = re.search(r'{{- define "ireko.rules" -}}\n(.*?){{- end }}', helpers, re.DOTALL)
    assert found is not None
    loaded: list[dict[str, Any]] = yaml.safe_load(found[1])
    return loaded
