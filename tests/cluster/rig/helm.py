"""The real Helm, with a home of its own: what a person does with a chart, as functions."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rig.binaries import HELM, Programs, find_or_build
from rig.errors import RigError

CHARTS = Path(__file__).parents[3] / "charts"
CHART = CHARTS / "ireko"

Values = Mapping[str, Any]
Object = dict[str, Any]


class Helm:
    """Helm, working in `directory`; with `kubeconfig` also on a cluster."""

    def __init__(
        self, *, directory: Path, kubeconfig: Path | None = None, programs: Programs | None = None
    ) -> None:
        self._program = (programs or find_or_build(HELM)).path("helm")
        self._directory = directory
        self._environment = {
            **os.environ,
            "HELM_CACHE_HOME": str(directory / "cache"),
            "HELM_CONFIG_HOME": str(directory / "config"),
            "HELM_DATA_HOME": str(directory / "data"),
            "KUBECONFIG": str(kubeconfig or directory / "no-cluster"),
        }

    def __call__(
        self, *arguments: str | Path, values: Values | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run helm; with `check` a failure raises RigError with everything that it said."""
        given = ["--values", str(self._file(values))] if values is not None else []
        done = subprocess.run(
            [self._program, *map(str, arguments), *given],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=self._environment,
        )
        if check and done.returncode != 0:
            raise RigError(f"helm {' '.join(map(str, arguments))}: {done.stderr.strip()}{done.stdout}")
        return done

    def template(
        self,
        values: Values,
        *,
        chart: Path = CHART,
        release: str = "ireko",
        namespace: str = "ireko-system",
        options: Sequence[str] = (),
    ) -> list[Object]:
        """The objects that a release would consist of."""
        rendered = self("template", release, chart, "--namespace", namespace, *options, values=values).stdout
        return [document for document in yaml.safe_load_all(rendered) if document]

    def refusal(self, values: Values, *, chart: Path = CHART, options: Sequence[str] = ()) -> str:
        """What Helm says against `values`; an error when it takes them."""
        done = self("template", "ireko", chart, *options, values=values, check=False)
        if done.returncode == 0:
            raise RigError(f"helm took {values}")
        return done.stderr

    def install(
        self,
        values: Values,
        *,
        namespace: str,
        release: str = "ireko",
        chart: Path = CHART,
        options: Sequence[str] = (),
    ) -> str:
        """Install or upgrade a release without waiting for its pods; the notes that it ends with."""
        command = ("upgrade", "--install", release, chart, "--namespace", namespace, "--output", "json")
        answer: dict[str, Any] = json.loads(self(*command, *options, values=values).stdout)
        notes: str = answer["info"]["notes"]
        return notes

    def uninstall(self, *, namespace: str, release: str = "ireko") -> str:
        """Remove a release; what Helm says that it keeps."""
        return self("uninstall", release, "--namespace", namespace).stdout

    def _file(self, values: Values) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / f"values-{uuid.uuid4().hex[:8]}.json"
        file.write_text(json.dumps(values), encoding="utf-8")
        return file


def find(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """The one object of that kind (and name)."""
    found = [
        each
        for each in objects
        if each["kind"] == kind and (name is None or each["metadata"]["name"] == name)
    ]
    if len(found) != 1:
        there = sorted(f"{each['kind']}/{each['metadata']['name']}" for each in objects)
        raise RigError(f"{len(found)} objects are {kind} {name or ''}; there are {there}")
    return found[0]
