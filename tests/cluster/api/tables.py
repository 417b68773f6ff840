"""What the models refuse on a laptop, taken over from their own tests, to be put to a real API server."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

Manifest = dict[str, Any]

_UNIT_TESTS = Path(__file__).parents[2] / "unit" / "api"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"unit_api_{name}", _UNIT_TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_problems, _rules, _manifests = _load("test_problems"), _load("test_rules"), _load("conftest")

MINIMAL: Manifest = _manifests.MINIMAL
FORM: list[tuple[str, str, str]] = _problems.FORM
RULES: list[tuple[dict[str, Any], str, str]] = _rules.RULES
WHOLE: str = _problems.WHOLE
ABSENT: object = _manifests.ABSENT
edited = cast("Callable[[Manifest, dict[str, Any]], Manifest]", _manifests.edited)


def manifest_with(edits: dict[str, Any]) -> Manifest:
    """The minimal manifest with values set at dotted paths below `spec`; None deletes."""
    absent = _manifests.ABSENT
    return edited(
        MINIMAL, {f"spec.{path}": absent if value is None else value for path, value in edits.items()}
    )
