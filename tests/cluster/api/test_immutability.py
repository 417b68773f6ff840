"""A run stays the experiment that it was: the API server takes a change of what may change, and of nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from kubernetes.dynamic import Resource
from kubernetes.dynamic.exceptions import DynamicApiError

from api.tables import ABSENT, WHOLE, Manifest, edited
from ireko_api.crd import IMMUTABLE_MESSAGE
from rig.api_server import Cluster

# Each row: what is written where, None takes the field away. One row for every way in which a field can change.
CHANGES: list[tuple[str, Any]] = [
    ("seed", 7),
    ("teacher.dtype", "float16"),
    ("data.labels", ["negative", "neutral", "positive"]),
    ("pipeline.quantization", None),
    ("deviceTargets.0.constraints.maxSizeMiB", 21),
    ("evaluation.limit", None),
    ("registry.credentialsSecret", None),
    ("compute.workers", 3),
    ("compute.resourcesPerWorker.memory", "2Gi"),
    ("compute.image", "registry.example/other:1"),
    ("compute.image", None),
    ("compute.imagePullSecrets", []),
    ("compute.threadsPerWorker", 2),
    ("compute.storage.persistentVolumeClaim.subPath", None),
    ("compute.storage", {"objectStore": {"uri": "s3://bucket"}}),
    ("compute.storage", None),
    ("compute.queueName", None),
    ("compute.maxMemory", "8Gi"),
    ("compute.activeDeadlineSeconds", None),
    ("compute.nodeSelector", {"kubernetes.io/arch": "arm64"}),
    ("compute.nodeSelector", {"topology.kubernetes.io/zone": "amd64"}),
    ("compute.tolerations.0.effect", "NoExecute"),
    ("compute.podTemplate", None),
    ("compute.podTemplate.metadata.labels", {"group": "edge"}),
    ("compute.podTemplate.spec.affinity", {"podAffinity": {}}),
    ("compute.podTemplate.spec.affinity", {"nodeAffinity": {"required": {}}}),
    ("compute.podTemplate.spec.containers.0", {"name": "trainer", "image": "x"}),
    ("compute.podTemplate.spec.containers.0.tty", False),
    ("compute.podTemplate.spec", {"dnsPolicy": "Default"}),
    ("compute.podTemplate.spec", {"containers": [{"name": "trainer", "image": "other"}]}),
]


Replace = Callable[[Manifest], str]
"""Puts a manifest in the place of the kept one, without keeping it; what the API server says against that."""


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """The manifest with everything, in numbers that JSON has."""
    whole: Manifest = yaml.safe_load(WHOLE.replace("2e-3", "0.002"))
    return whole


@pytest.fixture(scope="module")
def replace(api_server: Cluster, manifest: Manifest) -> Iterator[Replace]:
    runs: Resource = api_server.client().resources.get(
        api_version=manifest["apiVersion"], kind=manifest["kind"]
    )
    with api_server.namespace() as namespace:
        kept = runs.create(body=copy.deepcopy(manifest), namespace=namespace)

        def put(changed: Manifest) -> str:
            body = edited(changed, {"metadata.resourceVersion": kept.metadata.resourceVersion})
            try:
                runs.replace(body=body, namespace=namespace, dry_run="All")
            except DynamicApiError as refused:
                if refused.status != 422:
                    raise
                return str(json.loads(refused.body)["message"])
            return ""

        yield put


@pytest.mark.parametrize(
    ("path", "value"), CHANGES, ids=[f"{path}={json.dumps(value)}" for path, value in CHANGES]
)
def test_a_change_of_the_experiment_is_refused(
    replace: Replace, manifest: Manifest, path: str, value: Any
) -> None:
    changed = edited(manifest, {f"spec.{path}": ABSENT if value is None else value})
    assert IMMUTABLE_MESSAGE in replace(changed)


@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"spec.suspend": True},
        {"spec.compute.ttlSecondsAfterFinished": 5},
        {"spec.compute.ttlSecondsAfterFinished": 5, "spec.suspend": True},
    ],
    ids=str,
)
def test_a_pause_and_another_time_to_live_are_taken(
    replace: Replace, manifest: Manifest, edits: dict[str, Any]
) -> None:
    assert replace(edited(manifest, edits)) == ""


def test_a_time_to_live_may_be_taken_away(replace: Replace, manifest: Manifest) -> None:
    assert replace(edited(manifest, {"spec.compute.ttlSecondsAfterFinished": ABSENT})) == ""
