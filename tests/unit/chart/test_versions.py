"""Numbers that stand in several files are the same in all of them."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def found(pattern: str, path: str) -> str:
    match = re.search(pattern, text(path), re.MULTILINE)
    assert match is not None, f"{path} has no {pattern}"
    return match[1]


def test_the_charts_are_of_this_release() -> None:
    chart, stack = (yaml.safe_load(text(f"charts/{name}/Chart.yaml")) for name in ("ireko", "ireko-stack"))
    assert (
        chart["appVersion"] == chart["version"] == stack["appVersion"] == stack["version"] == version("ireko")
    )
    assert stack["dependencies"][0]["version"] == chart["version"]


def test_the_kuberay_that_people_are_told_to_install_is_the_tested_one() -> None:
    tested = found(
        r"github\.com/ray-project/kuberay/ray-operator v([\d.]+)", "tests/cluster/go/kuberay/go.mod"
    )
    stack = yaml.safe_load(text("charts/ireko-stack/Chart.yaml"))
    told = r"kuberay/kuberay-operator --version ([\d.]+)"

    assert found(told, "docs/install.md") == tested
    assert found(told, "charts/ireko/templates/NOTES.txt") == tested
    assert stack["dependencies"][1]["version"] == tested


def test_images_and_checkout_are_installed_by_one_uv() -> None:
    assert found(r"UV_VERSION=([\d.]+)", "Dockerfile") == found(r"UV_VERSION := ([\d.]+)", "Makefile")


def test_the_chart_runs_the_images_as_the_user_that_they_name(values: dict[str, Any]) -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", text("Dockerfile"), re.MULTILINE)
    security = values["podSecurityContext"]

    assert len(users) == 2  # a name instead of a number cannot be told from root's by the kubelet
    assert set(users) == {(str(security["runAsUser"]), str(security["runAsGroup"]))}


def test_the_image_of_the_operator_is_made_without_the_trainers_packages() -> None:
    stages = dict(
        re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text("Dockerfile"), re.MULTILINE | re.DOTALL)
    )

    assert "'.[operator]'" in stages["build-operator"]
    assert "--from=build-operator" in stages["operator"]
    assert "RUN" not in stages["operator"]
    assert "RUN" not in stages["trainer"]
