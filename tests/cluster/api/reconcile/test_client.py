"""What the client's verbs do on a real API server, refusals included."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ireko_operator.errors import OperatorError
from ireko_operator.kube.client import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeClient,
    KubeError,
    NotFoundError,
    UnavailableError,
    connect,
)
from ireko_operator.kube.events import EventWriter, Note
from ireko_operator.kube.keys import CONFIG_MAPS, JOBS, RUNS, Resource
from ireko_operator.kube.objects import run_object
from play.world import World, manifest
from rig.api_server import Cluster

OTHER_UID = "00000000-0000-0000-0000-000000000000"
NO_KIND = Resource(group="kueue.x-k8s.io", version="v1beta1", plural="workloads")


def _apply_to_another(world: World) -> None:
    body = {**manifest(), "metadata": {"name": "demo", "uid": OTHER_UID, "finalizers": ["ireko.dev/x"]}}
    world.hands.apply(RUNS, namespace=world.namespace, name="demo", body=body, manager="m")


def _apply_to_none(world: World) -> None:
    body = {**manifest("none"), "metadata": {"name": "none", "uid": OTHER_UID}}
    world.hands.apply(RUNS, namespace=world.namespace, name="none", body=body, manager="m")


def _status_of_none(world: World) -> None:
    body = {**manifest("none"), "status": {"phase": "Running"}}
    world.hands.apply(
        RUNS, namespace=world.namespace, name="none", body=body, manager="m", subresource="status"
    )


def _create_twice(world: World) -> None:
    world.hands.create(RUNS, namespace=world.namespace, body=manifest(), manager="m")


def _delete_another(world: World) -> None:
    world.hands.delete(RUNS, namespace=world.namespace, name="demo", uid=OTHER_UID)


def _merge_into_another(world: World) -> None:
    body = {"metadata": {"uid": OTHER_UID}, "spec": {"suspend": True}}
    world.hands.merge(RUNS, namespace=world.namespace, name="demo", body=body, manager="m")


def _failing_test(world: World) -> None:
    operations = [{"op": "test", "path": "/metadata/uid", "value": OTHER_UID}]
    world.hands.json_patch(RUNS, namespace=world.namespace, name="demo", operations=operations, manager="m")


def _invalid(world: World) -> None:
    wrong = {**manifest("wrong"), "spec": {}}
    world.hands.create(RUNS, namespace=world.namespace, body=wrong, manager="m")


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        (_apply_to_another, ConflictError),
        (_apply_to_none, ConflictError),
        (_status_of_none, NotFoundError),
        (_create_twice, AlreadyExistsError),
        (_delete_another, ConflictError),
        (_merge_into_another, ConflictError),
        (_failing_test, InvalidError),
        (_invalid, InvalidError),
    ],
)
def test_what_is_refused_has_a_type_of_its_own(
    world: World, attempt: Callable[[World], None], refusal: type[KubeError]
) -> None:
    world.apply(manifest())
    with pytest.raises(refusal) as caught:
        attempt(world)
    assert type(caught.value) is refusal
    assert str(caught.value)


def test_a_kind_that_is_not_installed_is_told_from_an_object_that_is_not_there(world: World) -> None:
    with pytest.raises(NotFoundError) as caught:
        world.hands.get(NO_KIND, namespace=world.namespace, name="x")
    assert caught.value.kind_missing
    with pytest.raises(NotFoundError) as caught:
        world.hands.get(JOBS, namespace=world.namespace, name="x")
    assert not caught.value.kind_missing


def test_what_rbac_does_not_allow_is_forbidden(world: World, api_server: Cluster) -> None:
    nobody = KubeClient(api=connect(kubeconfig=api_server.user("nobody")))
    with pytest.raises(ForbiddenError, match="nobody"):
        nobody.get(RUNS, namespace=world.namespace, name="demo")


def test_an_api_server_that_is_away_is_unavailable_within_seconds(
    api_server: Cluster, tmp_path: Path
) -> None:
    text = api_server.kubeconfig.read_text().replace(api_server.url, "https://127.0.0.1:9")
    (tmp_path / "kubeconfig").write_text(text)
    client = KubeClient(api=connect(kubeconfig=tmp_path / "kubeconfig"))
    with pytest.raises(UnavailableError, match="did not answer GET"):
        client.get(RUNS, namespace="default", name="demo")


def test_without_a_cluster_the_error_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="--kubeconfig"):
        connect(kubeconfig=tmp_path / "none")


def test_an_event_is_told_once_and_is_cut_to_what_the_api_server_takes(world: World) -> None:
    meta = run_object(world.apply(manifest())).meta
    writer = EventWriter(client=world.hands)
    for _ in range(2):
        writer.write(meta, Note(type="Warning", reason="Diverged", message="ß" * 3000), now=datetime.now(UTC))
    assert world.events() == [("Warning", "Diverged")]


def test_a_config_map_that_is_deleted_at_once_answers_with_a_status(world: World) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    made = world.hands.create(CONFIG_MAPS, namespace=world.namespace, body=body, manager="m")
    answer = world.hands.delete(CONFIG_MAPS, namespace=world.namespace, name="x", uid=made["metadata"]["uid"])
    assert answer["kind"] == "Status"
