"""The chart on a real API server: everything is admitted, installed, upgraded, and removed but for what must stay."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import AppsV1Api

from api.chart.value_sets import VALUE_SETS
from api.tables import MINIMAL as RUN
from rig.api_server import Cluster
from rig.errors import RigError
from rig.helm import Helm

DOCS = Path(__file__).parents[4] / "docs"
DEMO = VALUE_SETS["demo MLflow"]
TAKE_OVER = ["--take-ownership"]
"""Of the definition that another test's release left behind."""


@pytest.fixture
def place(empty_cluster: Cluster) -> Iterator[str]:
    """A namespace that takes restricted pods only."""
    with empty_cluster.namespace({"pod-security.kubernetes.io/enforce": "restricted"}) as name:
        yield name


@pytest.fixture
def teams(empty_cluster: Cluster) -> None:
    for name in ("team-a", "team-b"):
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        empty_cluster.apply("-f", "-", manifest=manifest)


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_the_api_server_takes_every_object_as_it_stands(
    empty_cluster: Cluster, helm: Helm, place: str, teams: None, values: dict[str, Any]
) -> None:
    """By strict server-side dry run: an unknown or misplaced field is an error."""
    objects = helm.template(values, namespace=place)
    said = empty_cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-",
        manifest={"apiVersion": "v1", "kind": "List", "items": objects},
    )  # fmt: skip

    assert len(said.stdout.splitlines()) == len(objects)
    assert "Warning" not in said.stderr  # such as Pod Security's


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_its_pods_are_restricted_ones(
    empty_cluster: Cluster, helm: Helm, place: str, values: dict[str, Any]
) -> None:
    values = {**values, "priorityClassName": ""}  # the system's classes are for the system's namespaces
    objects = helm.template(values, namespace=place)
    deployments = [each for each in objects if each["kind"] == "Deployment"]
    assert deployments
    for deployment in deployments:
        template = copy.deepcopy(deployment["spec"]["template"])
        template["spec"].pop("serviceAccountName", None)  # not made by a dry run
        name = deployment["metadata"]["name"]
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {**template["metadata"], "name": name, "namespace": place}
        said = empty_cluster.kubectl("create", "--dry-run=server", "-f", "-", manifest=pod)
        assert f"pod/{name} created" in said.stdout
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["requests"]


def test_a_release_is_installed_upgraded_and_removed(
    empty_cluster: Cluster, helm_there: Helm, place: str
) -> None:
    notes = helm_there.install(DEMO, namespace=place, options=TAKE_OVER)
    assert f"http://ireko-mlflow.{place}.svc:5000" in notes
    assert "KubeRay is missing" in notes
    assert f"kubectl --namespace {place} rollout status deployment/ireko" in notes

    empty_cluster.kubectl("apply", "-n", place, "-f", "-", manifest=RUN)
    apps = AppsV1Api(empty_cluster.api_client())
    before = apps.read_namespaced_deployment("ireko-mlflow", place)

    helm_there.install({**DEMO, "workers": 9}, namespace=place)
    operator = apps.read_namespaced_deployment("ireko", place)
    after = apps.read_namespaced_deployment("ireko-mlflow", place)
    assert "--workers=9" in operator.spec.template.spec.containers[0].args
    assert after.metadata.generation == before.metadata.generation  # the server does not restart

    kept = helm_there.uninstall(namespace=place)
    assert "compressionruns.ireko.dev" in kept
    assert "ireko-mlflow" in kept
    left = empty_cluster.kubectl(
        "get", "deployment,service,serviceaccount,role,rolebinding,configmap,pvc,crun", "-n", place, "-o", "name"
    ).stdout.split()  # fmt: skip
    assert sorted(left) == [
        "compressionrun.ireko.dev/quickstart",
        "configmap/kube-root-ca.crt",
        "persistentvolumeclaim/ireko-mlflow",
        "serviceaccount/default",
    ]
    everywhere = empty_cluster.kubectl(
        "get", "clusterrole,clusterrolebinding", "-l", "app.kubernetes.io/part-of=ireko", "-o", "name"
    )
    assert everywhere.stdout == ""

    helm_there.install(DEMO, namespace=place)  # takes back what it kept
    helm_there.uninstall(namespace=place)


def _commands_that_look() -> list[str]:
    lines = {
        line.strip().partition(" | ")[0]
        for page in ("install", "monitoring", "upgrade")
        for line in (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"    kubectl (--namespace ireko-system )?(get|auth|explain) ", line)
    }
    return sorted(line for line in lines if "--watch" not in line and "rayjobs" not in line)


def test_the_commands_of_the_pages_are_understood(
    empty_cluster: Cluster, helm_there: Helm, place: str
) -> None:
    helm_there.install(DEMO, namespace=place, options=TAKE_OVER)
    empty_cluster.kubectl("apply", "-n", place, "-f", "-", manifest=RUN)
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "ireko"}}
    empty_cluster.kubectl("create", "-n", place, "-f", "-", manifest=lease)
    commands = _commands_that_look()
    assert len(commands) > 5
    for command in commands:
        _, *arguments = shlex.split(command.replace("ireko-system", place))
        empty_cluster.kubectl(*arguments)
    helm_there.uninstall(namespace=place)


def test_a_kept_definition_goes_to_a_release_elsewhere_only_when_it_is_told_to(
    empty_cluster: Cluster, helm_there: Helm, place: str
) -> None:
    with empty_cluster.namespace() as elsewhere:
        helm_there.install(DEMO, namespace=elsewhere, options=TAKE_OVER)
        helm_there.uninstall(namespace=elsewhere)
    with pytest.raises(RigError, match=r"compressionruns\.ireko\.dev.*cannot be imported"):
        helm_there.install(DEMO, namespace=place)
    helm_there.install(DEMO, namespace=place, options=TAKE_OVER)
    helm_there.uninstall(namespace=place)


def test_two_releases_of_one_name_live_side_by_side(
    empty_cluster: Cluster, helm_there: Helm, teams: None
) -> None:
    for name in ("team-a", "team-b"):
        values = {**VALUE_SETS["namespaced"], "watchNamespaces": [name]}
        helm_there.install({**values, "rbac": {"aggregateToDefaultRoles": True}}, namespace=name)
    for name in ("team-a", "team-b"):
        helm_there.uninstall(namespace=name)
