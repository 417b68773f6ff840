"""The generated definition is accepted by a real API server and does there what it says."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiextensionsV1Api
from kubernetes.dynamic import Resource

from api.tables import MINIMAL
from ireko_api.crd import IMMUTABLE_MESSAGE, custom_resource_definition
from rig.api_server import Cluster

NAME = custom_resource_definition()["metadata"]["name"]
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def test_the_definition_is_established_and_structural(api_server: Cluster) -> None:
    definition = ApiextensionsV1Api(api_server.api_client()).read_custom_resource_definition(NAME)
    conditions = {condition.type: condition.status for condition in definition.status.conditions}
    assert conditions.pop("NamesAccepted") == "True"
    assert conditions.pop("Established") == "True"
    assert conditions == {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_applies(api_server: Cluster, namespace: str, example: Path) -> None:
    done = api_server.kubectl("apply", "--dry-run=server", "-n", namespace, "-f", example)
    assert "(server dry run)" in done.stdout


def described_fields(schemas: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child.get("description", "")
        yield from described_fields(schemas, child, f"{path}.{name}")
    for below in ("items", "additionalProperties"):
        if isinstance(schema.get(below), dict):
            yield from described_fields(schemas, schema[below], path)


def test_the_published_schema_describes_every_field(api_server: Cluster) -> None:
    """What `kubectl explain` prints comes from here."""
    published = json.loads(api_server.kubectl("get", "--raw", "/openapi/v3/apis/ireko.dev/v1alpha1").stdout)
    schemas = published["components"]["schemas"]
    (run,) = [schema for name, schema in schemas.items() if name.endswith(".CompressionRun")]
    fields = dict(described_fields(schemas, {"properties": {"spec": run["properties"]["spec"]}}, "crun"))
    assert "crun.spec.deviceTargets.constraints.maxSizeMiB" in fields
    assert [path for path, text in fields.items() if not text.endswith((".", "!"))] == []


def test_kubectl_explains_a_field(api_server: Cluster) -> None:
    explained = api_server.kubectl("explain", "crun.spec.pipeline.mlfs.rank").stdout
    described = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for step in ("spec", "pipeline", "mlfs", "rank"):
        described = described["properties"][step]
    assert "FIELD: rank <integer>" in explained
    assert described["description"].split(".")[0].split("\n")[0][:40] in " ".join(explained.split())


def test_the_table_of_runs_shows_how_far_they_are(
    api_server: Cluster, runs: Resource, namespace: str
) -> None:
    manifest = copy.deepcopy(MINIMAL)
    manifest["spec"]["compute"] = {"queueName": "team-a"}
    runs.create(body=manifest, namespace=namespace)
    attempts = [
        {"number": number, "startedAt": "2026-01-31T12:00:00Z", "rayJob": f"quickstart-{number}"}
        for number in (1, 2)
    ]
    status = {
        "phase": "Running",
        "reason": "Training",
        "registered": "1/3",
        "progress": {"stage": "mlfs/widths", "step": 3, "totalSteps": 10, "percent": 42, "etaSeconds": 90},
        "attempts": attempts,
    }
    api_server.kubectl(
        "patch", "crun", "quickstart", "-n", namespace, "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": status}),
    )  # fmt: skip
    narrow = api_server.kubectl("get", "crun", "-n", namespace).stdout.splitlines()
    wide = api_server.kubectl("get", "crun", "-n", namespace, "-o", "wide").stdout.splitlines()
    expected = ["quickstart", "Running", "mlfs/widths", "42", "90", "1/3"]
    assert narrow[0].split() == ["NAME", "PHASE", "STAGE", "PERCENT", "ETA", "MEMBERS", "AGE"]
    assert narrow[1].split()[:-1] == expected
    assert wide[0].split() == [*narrow[0].split(), "REASON", "ATTEMPT", "QUEUE", "RAYJOB"]
    assert wide[1].split()[:6] == expected
    assert wide[1].split()[7:] == ["Training", "2", "team-a", "quickstart-2"]


def test_a_run_is_among_all_that_a_namespace_holds(
    api_server: Cluster, runs: Resource, namespace: str
) -> None:
    runs.create(body=copy.deepcopy(MINIMAL), namespace=namespace)
    assert "compressionrun.ireko.dev/quickstart" in api_server.kubectl("get", "all", "-n", namespace).stdout


def test_what_an_experiment_is_cannot_change_once_it_exists(
    api_server: Cluster, runs: Resource, namespace: str
) -> None:
    runs.create(body=copy.deepcopy(MINIMAL), namespace=namespace)
    patch = yaml.safe_dump({"spec": {"seed": 7}})
    refused = api_server.kubectl(
        "patch", "crun", "quickstart", "-n", namespace, "--type=merge", "-p", patch, check=False
    )
    assert refused.returncode != 0
    assert IMMUTABLE_MESSAGE in refused.stderr


def test_labels_of_a_run_may_change(api_server: Cluster, runs: Resource, namespace: str) -> None:
    runs.create(body=copy.deepcopy(MINIMAL), namespace=namespace)
    assert "labeled" in api_server.kubectl("label", "crun", "quickstart", "team=edge", "-n", namespace).stdout
