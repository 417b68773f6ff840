"""What a trainer leaves in MLflow, without training: real runs, tags, logged models with bundles, a family."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import yaml
from mlflow import MlflowClient

from ireko_api.handoff import (
    FAMILY_ARTIFACT,
    TAG_NAME,
    TAG_PROGRESS,
    TAG_SPEC_DIGEST,
    TAG_UID,
    Family,
    Member,
    ModelShape,
    Progress,
    RunRequest,
    TeacherSummary,
)


def begin(request: RunRequest, *, artifacts: Path) -> str:
    """Find or create the parent run of a request; its id."""
    client, experiment = _experiment(request, artifacts)
    found = client.search_runs(
        [experiment],
        f"tags.`{TAG_UID}` = '{request.uid}' AND tags.`{TAG_SPEC_DIGEST}` = '{request.spec_digest}'",
    )
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, status="RUNNING")
        return run_id
    tags = {TAG_UID: request.uid, TAG_SPEC_DIGEST: request.spec_digest, TAG_NAME: request.name}
    return str(client.create_run(experiment, tags=tags).info.run_id)


def progress(request: RunRequest, *, percent: int, artifacts: Path) -> None:
    """Log how far the run is."""
    run_id = begin(request, artifacts=artifacts)
    said = Progress(
        stage="widths",
        stage_index=1,
        stage_count=3,
        step=percent,
        total_steps=100,
        percent=percent,
        eta_seconds=100 - percent,
        updated_at=datetime.now(UTC),
    )
    MlflowClient(request.tracking_uri).set_tag(run_id, TAG_PROGRESS, said.to_json())


def finish(request: RunRequest, *, artifacts: Path, scratch: Path) -> Family:
    """Log one model per device target and hand the family over; twice hands the same over."""
    run_id = begin(request, artifacts=artifacts)
    client, experiment = _experiment(request, artifacts)
    if any(entry.path == FAMILY_ARTIFACT for entry in client.list_artifacts(run_id)):
        text = Path(client.download_artifacts(run_id, FAMILY_ARTIFACT, str(scratch))).read_text()
        client.set_terminated(run_id)
        return Family.model_validate_json(text)
    members = tuple(
        _member(client, experiment, run_id, target.name, scratch) for target in request.spec.device_targets
    )
    family = Family(
        name=request.name,
        uid=request.uid,
        spec_digest=request.spec_digest,
        run_id=run_id,
        teacher=TeacherSummary(
            metrics={"accuracy": 0.92}, size_bytes=90_000_000, parameters=22_000_000, sha256="t" * 64
        ),
        members=members,
        report="report/index.html",
    )
    client.log_text(run_id, "<html></html>", "report/index.html")
    client.log_text(run_id, family.to_json(), FAMILY_ARTIFACT)
    client.set_terminated(run_id)
    return family


def _experiment(request: RunRequest, artifacts: Path) -> tuple[MlflowClient, str]:
    client = MlflowClient(request.tracking_uri)
    name = request.spec.registry.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return client, str(found.experiment_id)
    location = None if request.tracking_uri.startswith("http") else artifacts.as_uri()
    return client, str(client.create_experiment(name, location))


def _member(client: MlflowClient, experiment: str, run_id: str, target: str, scratch: Path) -> Member:
    model = client.create_logged_model(experiment, name=target, source_run_id=run_id)
    directory = scratch / model.model_id
    sha256 = _write_model(directory, content=f"weights for {target}".encode())
    client.log_model_artifacts(model.model_id, str(directory))
    client.finalize_logged_model(model.model_id, "READY")
    return Member(
        target=target,
        runtime="torch",
        logged_model_uri=model.model_uri,
        bundle_sha256=sha256,
        size_bytes=1024,
        parameters=4_000_000,
        average_bits=4.25,
        shape=ModelShape(hidden=32, heads=2, intermediate=64, layers=(0, 1)),
        metrics={"accuracy": 0.9},
        metric="accuracy",
    )


def _write_model(directory: Path, *, content: bytes) -> str:
    """A model directory as `mlflow.pyfunc.save_model` lays it out; sha256 of the bundle's manifest."""
    bundle = directory / "artifacts" / "bundle"
    (bundle / "checkpoint").mkdir(parents=True)
    (bundle / "checkpoint" / "model.safetensors").write_bytes(content)
    name = "checkpoint/model.safetensors"
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest = {"format": 1, "files": {name: entry}}
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    flavor = {"artifacts": {"bundle": {"path": "artifacts/bundle", "uri": str(bundle)}}}
    (directory / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
