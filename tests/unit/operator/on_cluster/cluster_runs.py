"""Builders of runs on a cluster: a run that trains in order, with what a test is about replaced."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ireko_api.spec import CompressionRun
from ireko_api.status import Attempt as Record
from ireko_api.status import CompressionRunStatus
from ireko_api.validation import parse
from ireko_operator.launch import Attempt, ClusterView
from ireko_operator.launch.platform import Platform
from ireko_operator.reconcile.state import Observed, OnCluster

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
UID = "7b3c1a50-0000-4000-8000-000000000001"
PLATFORM = Platform(trainer_image="registry.example/trainer:1", tracking_uri="http://mlflow:5000")
STORAGE = {"persistentVolumeClaim": {"claimName": "checkpoints"}}


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def run_with(
    *,
    suspend: bool = False,
    registry: dict[str, Any] | None = None,
    pipeline: dict[str, Any] | None = None,
    **compute: Any,
) -> CompressionRun:
    """A run with the given fields of `spec.compute`."""
    return parse(
        {
            "apiVersion": "ireko.dev/v1alpha1",
            "kind": "CompressionRun",
            "metadata": {"name": "demo", "namespace": "edge", "uid": UID, "generation": 1},
            "spec": {
                "teacher": {"model": "file:///models/teacher", "task": "text-classification"},
                "data": {
                    "train": {"uri": "train.jsonl", "textColumns": ["sentence"], "labelColumn": "label"}
                },
                "pipeline": pipeline or {"mlfs": {}, "quantization": {"bits": [4, 8]}},
                "deviceTargets": [
                    {"name": "gateway", "constraints": {"maxSizeMiB": 20}},
                    {"name": "sensor", "constraints": {"maxSizeMiB": 5}},
                ],
                "compute": {"storage": STORAGE, **compute},
                "registry": registry or {},
                "suspend": suspend,
            },
        }
    )


def view(number: int = 1, **changes: Any) -> ClusterView:
    """A RayJob whose trainer is at work."""
    running = ClusterView(
        ray_job=f"demo-abc123-{number}",
        ray_cluster=f"demo-abc123-{number}-xyz",
        job_status="RUNNING",
        deployment_status="Running",
        created_at=ago(60),
        ready_pods=2,
        live_pods=2,
    )
    return replace(running, **changes)


def attempt(number: int = 1, *, alive: bool = True, **changes: Any) -> Attempt:
    """An attempt with a view of its RayJob; fields of the view and of the attempt alike may be changed."""
    own = {key: changes.pop(key) for key in ("failure", "stopping_since") if key in changes}
    return Attempt(number=number, alive=alive, cluster=view(number, **changes), **own)


def failed(number: int = 1, *, reason: str = "AppFailed", **changes: Any) -> Attempt:
    """An attempt whose RayJob failed and whose pods are gone."""
    ended = {"job_status": "FAILED", "deployment_status": "Failed", "reason": reason, "live_pods": 0}
    return attempt(number, alive=False, **{**ended, **changes})


def succeeded(number: int = 1, **changes: Any) -> Attempt:
    """An attempt whose RayJob succeeded."""
    ended = {"job_status": "SUCCEEDED", "deployment_status": "Complete", "live_pods": 0}
    return attempt(number, alive=False, **{**ended, **changes})


def record(number: int = 1, outcome: str = "Running", *, ended: float = 5, **changes: Any) -> Record:
    """The record of an attempt, ended some seconds ago unless it runs."""
    known: dict[str, Any] = {"number": number, "started_at": ago(60), "outcome": outcome}
    if outcome != "Running":
        known["finished_at"] = ago(ended)
    return Record(**{**known, **changes})


def status(*attempts: Record, **changes: Any) -> CompressionRunStatus:
    """A status with the given records; active since the start of one that runs."""
    running = any(item.outcome == "Running" for item in attempts)
    since = {"active_since": ago(60)} if running else {}
    return CompressionRunStatus(attempts=attempts, **{**since, **changes})


def seen(run: CompressionRun | None = None, **changes: Any) -> Observed:
    """A run of which nothing exists yet; fields of `OnCluster` and of `Observed` alike may be changed."""
    fields = ("platform", "deleting", "finalizer", "earlier", "kuberay", "refusal")
    cluster = {"platform": PLATFORM, "finalizer": True}
    cluster |= {key: changes.pop(key) for key in fields if key in changes}
    return Observed(
        **{
            "run": run or run_with(),
            "tracking_uri": "http://mlflow:5000",
            "cluster": OnCluster(**cluster),
            **changes,
        }
    )
