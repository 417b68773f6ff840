"""What the real Helm makes of values: objects, or a sentence that says what is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from api.chart.value_sets import VALUE_SETS
from ireko_operator.cli import app
from ireko_operator.process.settings import read_pod_defaults
from rig.helm import CHART, CHARTS, Helm, find

MINIMAL = VALUE_SETS["own MLflow"]
EVERYTHING = VALUE_SETS["everything"]


def kinds(objects: list[dict[str, Any]]) -> list[str]:
    return sorted(each["kind"] for each in objects)


def arguments(objects: list[dict[str, Any]], name: str = "ireko") -> list[str]:
    container = find(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
    given: list[str] = container["args"]
    return given


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_lint_finds_nothing(helm: Helm, values: dict[str, Any]) -> None:
    said = helm("lint", "--strict", CHART, values=values)
    assert "1 chart(s) linted, 0 chart(s) failed" in said.stdout
    assert "WARNING" not in said.stdout


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no MLflow at all": ({}, "tracking.uri: name the MLflow tracking server"),
    "two MLflows": (
        {"tracking": {"uri": "http://mlflow"}, "demoMlflow": {"enabled": True}},
        "tracking.uri: leave it empty together with demoMlflow.enabled=true",
    ),
    "replicas that do not elect": (
        {**MINIMAL, "replicas": 2, "leaderElection": {"enabled": False}},
        "leaderElection.enabled: with more than one replica exactly one may work",
    ),
    "KubeRay that must be there": (
        {**MINIMAL, "kuberay": {"check": "Require"}},
        "kuberay.check: the cluster serves no ray.io/v1 RayJob. Install KubeRay 1.6 or newer first",
    ),
    "an account that is neither made nor named": (
        {**MINIMAL, "serviceAccount": {"create": False}},
        "serviceAccount.name: name an existing ServiceAccount",
    ),
    "a misspelt value": ({**MINIMAL, "replica": 2}, "additional properties 'replica' not allowed"),
    "a misspelt value further down": (
        {"tracking": {"url": "http://mlflow"}},
        "at '/tracking': additional properties 'url' not allowed",
    ),
    "too many replicas": ({**MINIMAL, "replicas": 17}, "at '/replicas': maximum: got 17, want 16"),
    "text for a number": ({**MINIMAL, "workers": "4"}, "at '/workers': got string, want integer"),
    "an unknown word": (
        {**MINIMAL, "submissionMode": "SSH"},
        "at '/submissionMode': value must be one of 'K8sJobMode', 'SidecarMode', 'HTTPMode'",
    ),
    "a password in a URI": ({"tracking": {"uri": "https://me:secret@mlflow"}}, "at '/tracking/uri'"),
    "an unknown exception": ({**MINIMAL, "podExceptions": ["Everything"]}, "at '/podExceptions/0'"),
    "a memory that is none": (
        {**MINIMAL, "resources": {"limits": {"memory": "1 GB"}}},
        "at '/resources/limits/memory'",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_bad_value_is_refused_with_a_sentence(helm: Helm, values: dict[str, Any], sentence: str) -> None:
    assert sentence in helm.refusal(values)


def test_kuberay_may_be_required_where_it_is(helm: Helm) -> None:
    objects = helm.template(
        {**MINIMAL, "kuberay": {"check": "Require"}}, options=["--api-versions", "ray.io/v1/RayJob"]
    )
    assert "Deployment" in kinds(objects)


def test_the_smallest_release_has_no_more_than_it_needs(helm: Helm) -> None:
    assert kinds(helm.template(MINIMAL)) == [
        "ClusterRole",
        "ClusterRole",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    ]


def test_the_definition_is_the_generated_one_and_is_kept(helm: Helm) -> None:
    rendered = find(helm.template(MINIMAL), "CustomResourceDefinition")
    generated = yaml.safe_load(
        (CHARTS.parent / "crds" / "ireko.dev_compressionruns.yaml").read_text(encoding="utf-8")
    )

    metadata = rendered.pop("metadata")
    assert metadata["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert metadata["name"] == generated.pop("metadata")["name"]
    assert rendered == generated


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_the_operator_takes_the_arguments(helm: Helm, values: dict[str, Any]) -> None:
    name = values.get("fullnameOverride", "ireko")
    command, *options = arguments(helm.template(values), name)
    assert command == "operator"

    parsed = (
        typer.main.get_command(app)
        .commands["operator"]
        .make_context(  # type: ignore[attr-defined]
            "operator",
            [each.replace("/etc/ireko/pod-defaults.yaml", str(CHART / "Chart.yaml")) for each in options],
        )
    )

    assert parsed.params["tracking_uri"] in " ".join(options)


def test_values_become_the_arguments_that_they_stand_for(helm: Helm) -> None:
    given = arguments(helm.template(EVERYTHING), "compression")
    assert "--submission-mode=SidecarMode" in given
    assert [each for each in given if each.startswith("--allow=")] == [
        "--allow=HostPath",
        "--allow=RunAsRoot",
    ]
    assert "--lease-name=compression" in given

    given = arguments(helm.template(VALUE_SETS["namespaced"]))
    assert [each for each in given if each.startswith("--namespace=")] == [
        "--namespace=team-a",
        "--namespace=team-b",
    ]
    assert "--allowed-tracking-uri=https://other.example" in given
    assert "--no-leader-elect" in given


def test_the_pod_defaults_arrive_as_they_were_written(helm: Helm, tmp_path: Path) -> None:
    objects = helm.template(EVERYTHING)
    file = tmp_path / "pod-defaults.yaml"
    file.write_text(
        find(objects, "ConfigMap", "compression-pod-defaults")["data"]["pod-defaults.yaml"], encoding="utf-8"
    )

    assert read_pod_defaults(file) == EVERYTHING["podDefaults"]
    assert "--pod-defaults=/etc/ireko/pod-defaults.yaml" in arguments(objects, "compression")


def test_changed_pod_defaults_restart_the_operator(helm: Helm) -> None:
    def digest(defaults: dict[str, Any]) -> str:
        deployment = find(helm.template({**MINIMAL, "podDefaults": defaults}), "Deployment")
        found: str = deployment["spec"]["template"]["metadata"]["annotations"][
            "ireko.dev/pod-defaults-digest"
        ]
        return found

    assert digest({"spec": {"runtimeClassName": "a"}}) != digest({"spec": {"runtimeClassName": "b"}})


def test_credentials_come_from_a_secret_and_never_from_values(helm: Helm) -> None:
    deployment = find(helm.template(EVERYTHING), "Deployment", "compression")
    container = deployment["spec"]["template"]["spec"]["containers"][0]

    assert {"secretRef": {"name": "mlflow"}} in container["envFrom"]


def test_a_standby_brings_spread_and_a_disruption_budget(helm: Helm) -> None:
    alone = helm.template(MINIMAL)
    assert "PodDisruptionBudget" not in kinds(alone)
    assert "topologySpreadConstraints" not in find(alone, "Deployment")["spec"]["template"]["spec"]

    objects = helm.template({**MINIMAL, "replicas": 2})
    budget = find(objects, "PodDisruptionBudget")["spec"]
    pod = find(objects, "Deployment")["spec"]["template"]
    assert budget["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    spread = pod["spec"]["topologySpreadConstraints"][0]
    assert spread["labelSelector"]["matchLabels"] == budget["selector"]["matchLabels"]


def test_an_operator_that_does_not_elect_never_meets_its_successor(helm: Helm) -> None:
    strategy = find(helm.template(VALUE_SETS["namespaced"]), "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "Recreate"}


@pytest.mark.parametrize("port", [5000, 5555])
def test_a_network_policy_lets_the_operator_out_to_the_demo_server(helm: Helm, port: int) -> None:
    values = {"networkPolicy": {"enabled": True}, "demoMlflow": {"enabled": True, "port": port}}
    egress = find(helm.template(values), "NetworkPolicy")["spec"]["egress"]
    assert [each["port"] for each in egress[-1]["ports"]].count(port) == 1


def test_alerts_arrive_with_links_and_without_those_that_are_disabled(helm: Helm) -> None:
    rules = find(helm.template(EVERYTHING), "PrometheusRule")["spec"]["groups"][0]["rules"]
    written = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))["alerts"]

    assert [rule["alert"] for rule in rules] == [
        rule["alert"] for rule in written if rule["alert"] != "IrekoRunsPending"
    ]
    for rule in rules:
        (source,) = [each for each in written if each["alert"] == rule["alert"]]
        link = "https://git.example/ireko/blob/main/" + source["annotations"].pop("runbook_url")
        assert rule["annotations"].pop("runbook_url") == link
        assert rule == source


def test_the_dashboard_arrives_as_it_was_written(helm: Helm) -> None:
    shipped = find(helm.template(EVERYTHING), "ConfigMap", "compression-dashboard")["data"]["ireko.json"]
    assert json.loads(shipped) == json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))


def test_the_demo_server_is_the_operators_server(helm: Helm) -> None:
    objects = helm.template(VALUE_SETS["demo MLflow"], namespace="trial")
    service = find(objects, "Service", "ireko-mlflow")
    server = find(objects, "Deployment", "ireko-mlflow")["spec"]["template"]

    uri = f"http://ireko-mlflow.trial.svc:{service['spec']['ports'][0]['port']}"
    assert f"--tracking-uri={uri}" in arguments(objects)
    (hosts,) = [
        each for each in server["spec"]["containers"][0]["args"] if each.startswith("--allowed-hosts")
    ]
    assert uri.removeprefix("http://") in hosts.split("=")[1].split(",")
    assert service["spec"]["selector"].items() <= server["metadata"]["labels"].items()
    metrics = find(objects, "Service", "ireko")
    assert not metrics["spec"]["selector"].items() <= server["metadata"]["labels"].items()


def test_mlflow_takes_the_demo_servers_arguments_and_answers_to_its_names_only(helm: Helm) -> None:
    from mlflow.cli import server
    from mlflow.server.security_utils import is_allowed_host_header

    deployment = find(helm.template(VALUE_SETS["demo MLflow"]), "Deployment", "ireko-mlflow")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert [*container["command"], container["args"][0]] == ["mlflow", "server"]

    given = server.make_context("server", container["args"][1:]).params

    hosts = given["allowed_hosts"].split(",")
    for host in ("ireko-mlflow", "ireko-mlflow.ireko-system.svc.cluster.local", "localhost"):
        assert is_allowed_host_header(hosts, f"{host}:{given['port']}")
    assert is_allowed_host_header(hosts, "mlflow.example:443")
    assert not is_allowed_host_header(hosts, "evil.example:5000")
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert given["backend_store_uri"].removeprefix("sqlite:///").rpartition("/")[0] in mounts
    assert given["artifacts_destination"].rpartition("/")[0] in mounts


@pytest.mark.parametrize("kuberay", [True, False], ids=["with KubeRay", "without KubeRay"])
def test_the_stack_has_a_switch_for_kuberay(helm: Helm, tmp_path: Path, kuberay: bool) -> None:
    """KubeRay's own chart needs a network; here a chart of the same name and version stands in for it."""
    stack = tmp_path / "ireko-stack"
    shutil.copytree(CHARTS / "ireko-stack", stack, ignore=shutil.ignore_patterns("charts"))
    double = tmp_path / "kuberay-operator"
    (double / "templates").mkdir(parents=True)
    wanted = yaml.safe_load((stack / "Chart.yaml").read_text(encoding="utf-8"))["dependencies"][1]
    chart = {"apiVersion": "v2", "name": wanted["name"], "version": wanted["version"]}
    (double / "Chart.yaml").write_text(yaml.safe_dump(chart), encoding="utf-8")
    marker = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kuberay-was-here"}}
    (double / "templates" / "marker.yaml").write_text(yaml.safe_dump(marker), encoding="utf-8")
    for part in (CHART, double):
        helm("package", part, "--destination", stack / "charts")

    objects = helm.template({"kuberay-operator": {"enabled": kuberay}}, chart=stack)

    names = {each["metadata"]["name"] for each in objects}
    assert ("kuberay-was-here" in names) == kuberay
    assert {"compressionruns.ireko.dev", "ireko-mlflow"} <= names
