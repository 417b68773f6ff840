"""Builders of observed runs: everything in order, with what a test is about replaced."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from ireko_api.handoff import Family, Member, ModelShape, TeacherSummary
from ireko_api.spec import CompressionRun
from ireko_api.validation import parse
from ireko_operator.reconcile.state import Observed, Registration

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "ireko.dev/v1alpha1",
        "kind": "CompressionRun",
        "metadata": {"name": "demo"},
        "spec": {
            "teacher": {"model": "file:///models/teacher", "task": "text-classification"},
            "data": {"train": {"uri": "train.jsonl", "textColumns": ["sentence"], "labelColumn": "label"}},
            "pipeline": {"quantization": {"bits": [4, 8]}},
            "deviceTargets": [
                {"name": "gateway", "constraints": {"maxSizeMiB": 20}},
                {"name": "sensor", "constraints": {"maxSizeMiB": 5}},
            ],
            **spec,
        },
    }


def member(target: str) -> Member:
    return Member(
        target=target,
        runtime="torch",
        logged_model_uri=f"models:/m-{target}",
        bundle_sha256="ab" * 32,
        size_bytes=5_000_000,
        parameters=1_000_000,
        average_bits=4.25,
        shape=ModelShape(hidden=32, heads=2, intermediate=64, layers=(0, 1)),
        metrics={"accuracy": 0.9, "f1": float("nan")},
        metric="accuracy",
    )


@pytest.fixture
def make_manifest() -> Callable[..., dict[str, Any]]:
    return manifest


@pytest.fixture
def run() -> CompressionRun:
    return parse(manifest())


@pytest.fixture
def family(run: CompressionRun) -> Family:
    return Family(
        name="demo",
        uid="u-1",
        spec_digest=run.spec.digest(),
        run_id="r-1",
        teacher=TeacherSummary(
            metrics={"accuracy": 0.92}, size_bytes=90_000_000, parameters=22_000_000, sha256="t"
        ),
        members=(member("gateway"), member("sensor")),
        report="report/index.html",
    )


@pytest.fixture
def registered() -> tuple[Registration, ...]:
    return tuple(
        Registration(target=target, model="demo", version=version)
        for version, target in enumerate(("gateway", "sensor"), start=1)
    )


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def observed(run: CompressionRun) -> Callable[..., Observed]:
    def build(**changes: Any) -> Observed:
        return Observed(**{"run": run, "tracking_uri": "sqlite:///x.db", **changes})

    return build
