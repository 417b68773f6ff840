"""Status, finalizers and ownership behave under a real API server as the operator counts on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import Resource
from kubernetes.dynamic.exceptions import ConflictError, ForbiddenError

from api.tables import MINIMAL
from rig.api_server import Cluster
from rig.processes import wait_until

FINALIZER = "ireko.dev/test"


@pytest.fixture
def run(runs: Resource, namespace: str) -> dict[str, Any]:
    """A run that exists."""
    created: dict[str, Any] = runs.create(body=copy.deepcopy(MINIMAL), namespace=namespace).to_dict()
    return created


def condition(kind: str, status: str) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "lastTransitionTime": "2026-01-31T12:00:00Z",
        "reason": "Because",
        "message": "",
    }


def applied(
    runs: Resource, namespace: str, *, manager: str, status: dict[str, Any], force: bool = False
) -> Any:
    body = {
        "apiVersion": MINIMAL["apiVersion"],
        "kind": MINIMAL["kind"],
        "metadata": {"name": "quickstart", "namespace": namespace},
        "status": status,
    }
    return runs.status.server_side_apply(body=body, field_manager=manager, force_conflicts=force)


def test_writing_the_status_changes_no_generation(
    runs: Resource, run: dict[str, Any], namespace: str
) -> None:
    after = applied(runs, namespace, manager="ireko", status={"phase": "Running"})
    assert after.metadata.generation == run["metadata"]["generation"] == 1
    assert after.status.phase == "Running"


def test_writing_the_spec_leaves_the_status_alone(
    runs: Resource, run: dict[str, Any], namespace: str
) -> None:
    applied(runs, namespace, manager="ireko", status={"phase": "Running"})
    body = {**copy.deepcopy(MINIMAL), "status": {"phase": "Succeeded"}}
    body["metadata"]["resourceVersion"] = runs.get(
        name="quickstart", namespace=namespace
    ).metadata.resourceVersion
    runs.replace(body=body, namespace=namespace)
    assert runs.get(name="quickstart", namespace=namespace).status.phase == "Running"


def test_a_status_that_was_applied_in_parts_keeps_the_parts_of_others(
    runs: Resource, run: dict[str, Any], namespace: str
) -> None:
    applied(runs, namespace, manager="ireko", status={"conditions": [condition("Accepted", "True")]})
    applied(runs, namespace, manager="somebody", status={"conditions": [condition("Theirs", "True")]})
    after = applied(
        runs, namespace, manager="ireko", status={"conditions": [condition("Registered", "True")]}
    )
    assert sorted(item.type for item in after.status.conditions) == ["Registered", "Theirs"]


def test_two_managers_of_one_field_conflict_until_one_insists(
    runs: Resource, run: dict[str, Any], namespace: str
) -> None:
    applied(runs, namespace, manager="somebody", status={"phase": "Pending"})
    with pytest.raises(ConflictError, match="somebody"):
        applied(runs, namespace, manager="ireko", status={"phase": "Running"})
    after = applied(runs, namespace, manager="ireko", status={"phase": "Running"}, force=True)
    assert after.status.phase == "Running"


def test_applying_the_same_status_again_writes_nothing(
    runs: Resource, run: dict[str, Any], namespace: str
) -> None:
    first = applied(runs, namespace, manager="ireko", status={"phase": "Running"})
    second = applied(runs, namespace, manager="ireko", status={"phase": "Running"})
    assert second.metadata.resourceVersion == first.metadata.resourceVersion


def test_a_write_on_top_of_an_old_version_is_refused(
    runs: Resource, run: dict[str, Any], namespace: str
) -> None:
    applied(runs, namespace, manager="ireko", status={"phase": "Running"})
    stale = copy.deepcopy(run)
    stale["metadata"]["labels"] = {"team": "edge"}
    with pytest.raises(ConflictError, match="has been modified"):
        runs.replace(body=stale, namespace=namespace)


@pytest.mark.parametrize(
    ("status", "place"),
    [
        ({"phase": "Excellent"}, "status.phase"),
        ({"progress": {"stage": "a", "percent": 101}}, "status.progress.percent"),
        ({"conditions": [condition("Accepted", "Perhaps")]}, "status.conditions[0].status"),
        ({"conditions": [condition(f"C{number}", "True") for number in range(17)]}, "status.conditions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_status_outside_of_its_bounds_is_refused(
    runs: Resource, run: dict[str, Any], namespace: str, status: dict[str, Any], place: str
) -> None:
    with pytest.raises(ApiException) as refused:
        applied(runs, namespace, manager="ireko", status=status)
    assert place in str(refused.value.body)


def test_a_finalizer_holds_a_deleted_run_until_it_is_taken_off(
    runs: Resource, run: dict[str, Any], namespace: str
) -> None:
    def finalizers(value: list[str]) -> None:
        runs.patch(
            name="quickstart",
            namespace=namespace,
            body={"metadata": {"finalizers": value}},
            content_type="application/merge-patch+json",
        )

    finalizers([FINALIZER])
    runs.delete(name="quickstart", namespace=namespace)
    held = runs.get(name="quickstart", namespace=namespace)
    assert held.metadata.deletionTimestamp
    applied(runs, namespace, manager="ireko", status={"phase": "Failed"})
    finalizers([])
    assert runs.get(namespace=namespace).items == []


def test_what_a_deleted_run_owned_goes_with_it(
    api_server: Cluster, runs: Resource, run: dict[str, Any], namespace: str
) -> None:
    owner = {
        "apiVersion": run["apiVersion"],
        "kind": run["kind"],
        "name": run["metadata"]["name"],
        "uid": run["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    maps = api_server.client().resources.get(api_version="v1", kind="ConfigMap")
    maps.create(body={"metadata": {"name": "owned", "ownerReferences": [owner]}}, namespace=namespace)
    runs.delete(name="quickstart", namespace=namespace)
    wait_until(
        lambda: all(item.metadata.name != "owned" for item in maps.get(namespace=namespace).items),
        what="the garbage collector",
        timeout=60,
    )


def test_an_identity_without_a_role_may_do_nothing(
    api_server: Cluster, run: dict[str, Any], namespace: str
) -> None:
    nobody = api_server.client(api_server.service_account(namespace, "default"))
    with pytest.raises(ForbiddenError):
        nobody.resources.get(api_version=MINIMAL["apiVersion"], kind=MINIMAL["kind"]).get(namespace=namespace)


def test_a_role_gives_what_it_names_and_no_more(
    api_server: Cluster, run: dict[str, Any], namespace: str
) -> None:
    api_server.kubectl(
        "create", "role", "reader", "-n", namespace, "--verb=get,list", "--resource=compressionruns.ireko.dev"
    )
    api_server.kubectl("create", "rolebinding", "reader", "-n", namespace, "--role=reader", "--user=ada")
    ada = api_server.client(api_server.user("ada"))
    runs_of_ada = ada.resources.get(api_version=MINIMAL["apiVersion"], kind=MINIMAL["kind"])
    assert [item.metadata.name for item in runs_of_ada.get(namespace=namespace).items] == ["quickstart"]
    with pytest.raises(ForbiddenError):
        runs_of_ada.delete(name="quickstart", namespace=namespace)


def test_everything_survives_a_restart_of_the_api_server(
    api_server: Cluster, run: dict[str, Any], namespace: str
) -> None:
    api_server.restart()
    kept = api_server.kubectl("get", "crun", "quickstart", "-n", namespace, "-o", "jsonpath={.metadata.uid}")
    assert kept.stdout == run["metadata"]["uid"]
