"""A small valid manifest and ways to change it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

Manifest = dict[str, Any]
ABSENT = object()

MINIMAL: Manifest = {
    "apiVersion": "ireko.dev/v1alpha1",
    "kind": "CompressionRun",
    "metadata": {"name": "quickstart"},
    "spec": {
        "teacher": {"model": "package://encoder/model", "task": "text-classification"},
        "data": {"train": {"uri": "train.jsonl.gz", "textColumns": ["sentence"], "labelColumn": "label"}},
        "pipeline": {"mlfs": {}, "quantization": {}},
        "deviceTargets": [{"name": "gateway", "constraints": {"maxSizeMiB": 20}}],
    },
}


def edited(manifest: Manifest, edits: dict[str, Any]) -> Manifest:
    """A copy with values set at dotted paths; numbers step into lists, `ABSENT` deletes."""
    result = copy.deepcopy(manifest)
    for path, value in edits.items():
        *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        parent: Any = result
        for key in above:
            parent = parent[key] if isinstance(key, int) else parent.setdefault(key, {})
        if value is ABSENT:
            del parent[last]
        else:
            parent[last] = copy.deepcopy(value)
    return result


@pytest.fixture
def manifest() -> Manifest:
    return copy.deepcopy(MINIMAL)


@pytest.fixture
def manifest_with() -> Callable[[dict[str, Any]], Manifest]:
    """The minimal manifest with values set at dotted paths below `spec`; None deletes."""

    def build(edits: dict[str, Any]) -> Manifest:
        paths = {f"spec.{path}": ABSENT if value is None else value for path, value in edits.items()}
        return edited(MINIMAL, paths)

    return build
