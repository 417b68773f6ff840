"""The operator's role holds exactly what its code uses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ireko_operator.kube.keys import CONFIG_MAPS, EVENTS, JOBS, RUNS, Kind
from ireko_operator.telemetry import API_WRITES

HTTP_VERBS = {"create": "create", "apply": "patch", "patch": "patch", "delete": "delete"}
WATCHED = {"get", "list", "watch"}
READ = {("", "configmaps"): {"get"}}
"""What is read without being watched."""
OWNER_REFERENCES = {("ireko.dev", "compressionruns/finalizers"): {"update"}}
"""Asked for by an admission plugin, not by a request of its own."""


@pytest.fixture(scope="module")
def rules(chart: Path) -> list[dict[str, Any]]:
    helpers = (chart / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    found = re.search(r'{{- define "ireko.rules" -}}\n(.*?){{- end }}', helpers, re.DOTALL)
    assert found is not None
    loaded: list[dict[str, Any]] = yaml.safe_load(found[1])
    return loaded


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
