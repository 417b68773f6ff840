"""Ireko on real nodes as its users have it: a release of the chart, runs in a namespace, and the registry behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import CustomObjectsApi
from kubernetes.client.exceptions import ApiException
from mlflow import MlflowClient
from urllib3.exceptions import HTTPError

from rig import mlflow, product
from rig.cluster import NodeCluster
from rig.errors import RigError
from rig.helm import Helm
from rig.processes import wait_until

PATIENCE_SECONDS = 1800
"""For anything that a run does: a machine that others use as well takes ten times as long as one alone."""

Object = dict[str, Any]
Registered = dict[str, Any]
"""What people and devices see of a model in the registry: its versions and aliases."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A release of Ireko on a cluster, and the namespace of its runs."""

    cluster: NodeCluster
    namespace: str
    storage: Path
    """The claim of the runs, as this machine sees it."""

    def install(self, **values: Any) -> str:
        """Install the chart, or upgrade it to `values`, and wait for its pods; Helm's notes."""
        settings = {"tracking": {"uri": mlflow.URL}, "progressIntervalSeconds": 1, **values}
        return product.install_ireko(self.cluster, helm_home=self._helm_home, values=settings)

    def uninstall(self) -> str:
        """Remove the release; what Helm says that it keeps."""
        helm = Helm(directory=self._helm_home, kubeconfig=self.cluster.kubeconfig)
        return helm.uninstall(namespace=product.NAMESPACE, release=product.RELEASE)

    @property
    def _helm_home(self) -> Path:
        return self.cluster.directory / "helm"

    def kubectl(self, *arguments: str, manifest: object | None = None, timeout: float = 120) -> str:
        """What kubectl says in the runs' namespace."""
        done = self.cluster.kubectl(*arguments, "-n", self.namespace, manifest=manifest, timeout=timeout)
        return done.stdout

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """`kubectl apply` as a person does it."""
        self.kubectl("apply", "-f", "-", manifest=manifest)

    def run(self, name: str) -> Object:
        """A CompressionRun."""
        api = CustomObjectsApi(self.cluster.api_client())
        found: Any = api.get_namespaced_custom_object(
            "ireko.dev", "v1alpha1", self.namespace, "compressionruns", name
        )
        run: Object = found
        return run

    def listed(self, kind: str, selector: str = "", *, namespace: str | None = None) -> list[Object]:
        """Objects of a kind, in the runs' namespace unless another is named."""
        where = ("-n", namespace or self.namespace)
        said = self.cluster.kubectl("get", kind, "-l", selector, "-o", "json", *where).stdout
        found: list[Object] = json.loads(said)["items"]
        return found

    def pods(self, run: str, role: str) -> list[Object]:
        """The Ray pods of a run that are not on their way out: `head` or `worker`."""
        selector = f"ireko.dev/run={run},ray.io/node-type={role}"
        return [pod for pod in self.listed("pods", selector) if "deletionTimestamp" not in pod["metadata"]]

    def wait_for(self, name: str, what: str, holds: Callable[[Object], bool]) -> Object:
        """Wait until `holds` of the run's status, which it returns; an error when the run ends without it."""
        last: Object = {}

        def look() -> bool:
            nonlocal last
            try:
                last = self.run(name).get("status", {})
            except (ApiException, HTTPError):  # the API server is one of those that tests disturb
                return False
            if holds(last):
                return True
            if last.get("phase") in ("Succeeded", "Failed"):
                raise RigError(f"{name} ended before {what}: {self.told(name)}")
            return False

        try:
            wait_until(look, what=f"{name}: {what}", timeout=PATIENCE_SECONDS, every=0.5)
        except RigError as late:
            raise RigError(f"{late}\n{self.told(name)}") from late
        return last

    def wait_for_success(self, name: str) -> Object:
        """Wait as a person does, with `kubectl wait`; the run's last status."""
        timeout = f"--timeout={PATIENCE_SECONDS}s"
        try:
            self.kubectl(
                "wait", "--for=condition=Succeeded", f"crun/{name}", timeout, timeout=PATIENCE_SECONDS + 60
            )
        except RigError as late:
            raise RigError(f"{late}\n{self.told(name)}") from late
        status: Object = self.run(name)["status"]
        return status

    def told(self, name: str) -> str:
        """Everything that explains where a run stands, for the reader of a failed test."""
        parts = [
            json.dumps(self.run(name).get("status", {}), indent=1),
            self.kubectl("get", "pods", "-o", "wide"),
        ]
        for pod in self.listed("pods", f"ireko.dev/run={name}"):
            log = self.cluster.kubectl(
                "logs", pod["metadata"]["name"], "-n", self.namespace, "--tail=30", check=False
            )
            parts.append(f"--- {pod['metadata']['name']}\n{log.stdout}{log.stderr}")
        return "\n".join(parts)

    def left_of_runs(self) -> list[str]:
        """Whatever the operator or KubeRay made in the runs' namespace and is still there."""
        mine = "app.kubernetes.io/managed-by=ireko"
        names = self.kubectl("get", "rayjobs,rayclusters,configmaps,pods", "-l", mine, "-o", "name").split()
        return names + self.kubectl("get", "compressionruns,jobs,services,pods", "-o", "name").split()

    def tracking_uri(self) -> str:
        """MLflow's pod, which this machine reaches by its address."""
        found = self.cluster.kubectl(
            "get", "pods", "-n", mlflow.NAMESPACE, "-l", "app=mlflow", "--field-selector=status.phase=Running",
            "-o", "jsonpath={.items[0].status.podIP}",
        ).stdout  # fmt: skip
        return f"http://{found}:{mlflow.PORT}"

    def registered(self, model: str) -> Registered:
        """The versions of a registered model and what its aliases point at; nothing that differs between two runs of
        one manifest."""
        uri = self.tracking_uri()
        client = MlflowClient(uri, uri)
        versions = client.search_model_versions(f"name = '{model}'")
        return {
            "versions": {
                int(version.version): (version.tags["device.target"], version.tags["bundle.sha256"])
                for version in sorted(versions, key=lambda version: int(version.version))
            },
            "aliases": {
                alias: int(version) for alias, version in client.get_registered_model(model).aliases.items()
            },
        }


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A run from `kubectl apply` to its end, as it was seen on the way."""

    name: str
    notes: str
    """What Helm said when it installed what executed the run."""
    midway: Object
    """Its status in the middle of the training."""
    row: dict[str, str]
    """What `kubectl get` showed then, by column."""
    nodes: tuple[str, ...]
    """Where its workers were then."""
    status: Object
    """Its last status."""
    registered: Registered


def kill_containers(pod: Object) -> None:
    """SIGKILL to every process of a pod's containers, as the kernel would; its kubelet starts them again."""
    uid = pod["metadata"]["uid"]
    for entry in Path("/proc").iterdir():
        try:
            mine = entry.name.isdigit() and f"pod{uid}" in (entry / "cgroup").read_text(encoding="utf-8")
            if mine and (entry / "comm").read_text(encoding="utf-8").strip() != "pause":
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
