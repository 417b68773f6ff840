"""The operator's role holds exactly what its code uses."""

from __future__ import annotations

from typing import Any

from ireko_operator.kube.keys import CONFIG_MAPS, EVENTS, JOBS, RUNS, Kind
from ireko_operator.process.checks import needed_rights
from ireko_operator.process.settings import OperatorSettings
from ireko_operator.telemetry import API_WRITES

HTTP_VERBS = {"create": "create", "apply": "patch", "patch": "patch", "delete": "delete"}
WATCHED = {"get", "list", "watch"}
READ = {("", "configmaps"): {"get"}, ("events.k8s.io", "events"): {"list"}}
"""What is read without being watched."""
OWNER_REFERENCES = {("ireko.dev", "compressionruns/finalizers"): {"update"}}
"""Asked for by an admission plugin, not by a request of its own."""


def _verbs(rules: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    verbs: dict[tuple[str, str], set[str]] = {}
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                verbs.setdefault((group, resource), set()).update(rule["verbs"])
    return verbs


def test_the_rules_are_what_the_code_watches_and_writes(rules: list[dict[str, Any]]) -> None:
    groups = {resource.plural: resource.group for resource in (RUNS, JOBS, CONFIG_MAPS, EVENTS)}
    groups |= {Kind.CLUSTERS: "ray.io", Kind.PODS: "", Kind.WORKLOADS: "kueue.x-k8s.io"}
    used: dict[tuple[str, str], set[str]] = {(groups[kind], str(kind)): set(WATCHED) for kind in Kind}
    for resource, verb in API_WRITES:
        group = groups[resource.split("/")[0]]
        used.setdefault((group, resource), set()).add(HTTP_VERBS[verb])
    for key, verbs in (READ | OWNER_REFERENCES).items():
        used.setdefault(key, set()).update(verbs)

    assert _verbs(rules) == used


def test_no_rule_is_about_secrets_or_everything(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        assert "secrets" not in rule["resources"]
        assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"]


def test_the_operator_asks_for_no_right_at_its_start_that_the_chart_does_not_give(
    rules: list[dict[str, Any]],
) -> None:
    given = _verbs(rules)
    settings = OperatorSettings(trainer_image="trainer", identity="me", leader_elect=False)

    for right in needed_rights(settings):
        resource = "/".join(filter(None, (right.resource, right.subresource)))
        assert right.verb in given[right.group, resource]
