"""The API tier: a real API server for one test session, and what a test does with it."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config
from kubernetes.dynamic import DynamicClient

from rig.binaries import KUBERNETES, Programs, find_or_build
from rig.control_plane import ControlPlane, Settings
from rig.errors import RigError
from rig.kubeconfig import write_kubeconfig
from rig.processes import free_port, wait_until

CONTROLLERS = (
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "ttl-after-finished-controller",
)
"""What runs beside the API server: owners' deletion, namespaces and their service accounts, Jobs, quotas."""


class Cluster:
    """A control plane as a test sees it: a URL, identities, kubectl and a Python client."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    @property
    def url(self) -> str:
        """Where the API server answers, `https://…`."""
        return self._plane.url

    @property
    def ca(self) -> Path:
        """The certificate authority that proves the API server."""
        return self._plane.authority.certificate

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self._plane.kubeconfig

    @property
    def directory(self) -> Path:
        """Where keys and logs lie; a test may put files of its own there."""
        return self._plane.directory

    @property
    def pids(self) -> dict[str, int]:
        """The running programs of the control plane by name."""
        return {name: process.pid for name, process in self._plane.processes.items() if process.running}

    def kubectl(
        self,
        *arguments: str | Path,
        manifest: object | None = None,
        kubeconfig: Path | None = None,
        check: bool = True,
        timeout: float = 400,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, or as `kubeconfig` says.

        `manifest` (text, or objects that become JSON) is given on the standard input: pass `-f -`. With `check`
        a failure raises RigError with everything that kubectl said.
        """
        text = manifest if manifest is None or isinstance(manifest, str) else json.dumps(manifest)
        done = subprocess.run(
            [self._plane.programs.path("kubectl"), *map(str, arguments)],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**os.environ, "KUBECONFIG": str(kubeconfig or self.kubeconfig)},
        )
        if check and done.returncode != 0:
            raise RigError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}{done.stdout}")
        return done

    def client(self, kubeconfig: Path | None = None) -> DynamicClient:
        """A new dynamic client (its own connections) of the administrator, or of `kubeconfig`."""
        # Its list of kinds would otherwise lie in a file that every cluster at this address shares.
        return DynamicClient(self.api_client(kubeconfig), cache_file=str(self.directory / "kinds.json"))

    def api_client(self, kubeconfig: Path | None = None) -> kubernetes_client.ApiClient:
        """A new plain client, for `kubernetes.client.CoreV1Api(…)` and the like."""
        made: kubernetes_client.ApiClient = kubernetes_config.new_client_from_config(
            config_file=str(kubeconfig or self.kubeconfig)
        )
        return made

    def user(self, name: str, *, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig of a person `name` in `groups`, who may do nothing until RBAC says so."""
        return self._plane.identity(name, groups=groups)

    def service_account(self, namespace: str, name: str, *, seconds: int = 3600) -> Path:
        """A kubeconfig of an existing service account, with a token that the API server issued for it."""
        token = self.kubectl(
            "create", "token", name, "-n", namespace, f"--duration={seconds}s"
        ).stdout.strip()
        return write_kubeconfig(
            self.directory / f"{namespace}-{name}-{uuid.uuid4().hex[:6]}.kubeconfig",
            url=self.url,
            authority=self.ca,
            user={"token": token},
            namespace=namespace,
        )

    def apply(self, *arguments: str | Path, manifest: object | None = None) -> None:
        """`kubectl apply --server-side`, which takes definitions of any size."""
        self.kubectl("apply", "--server-side", "--force-conflicts", *arguments, manifest=manifest)

    def apply_all(self, objects: Sequence[Mapping[str, Any]]) -> None:
        """Apply several objects at once."""
        self.apply("-f", "-", manifest={"apiVersion": "v1", "kind": "List", "items": list(objects)})

    def install_definitions(self, *paths: Path) -> None:
        """Apply CustomResourceDefinitions and wait until the API server serves them."""
        files = [argument for path in paths for argument in ("-f", path)]
        applied = self.kubectl(
            "apply", "--server-side", "--force-conflicts", "-o", "name", *files
        ).stdout.split()
        # `kubectl wait` gives up on an object that has no conditions yet.
        wait_until(
            lambda: (
                self.kubectl(
                    "wait", "--for=condition=Established", "--timeout=60s", *applied, check=False
                ).returncode
                == 0
            ),
            what="the definitions to be established",
            timeout=300,
        )
        # For a moment after that the API server still answers that their storage is being made.
        kinds = [name.partition("/")[2] for name in applied]
        wait_until(
            lambda: all(
                self.kubectl("get", kind, "--all-namespaces", check=False).returncode == 0 for kind in kinds
            ),
            what="the definitions to be served",
            timeout=300,
        )

    @contextmanager
    def namespace(self, labels: Mapping[str, str] | None = None) -> Iterator[str]:
        """A new namespace, deleted afterwards without waiting for its end."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        metadata = kubernetes_client.V1ObjectMeta(name=name, labels=dict(labels or {}))
        core = kubernetes_client.CoreV1Api(self.api_client())
        core.create_namespace(kubernetes_client.V1Namespace(metadata=metadata))
        self._wait_for_service_account(core, name)
        try:
            yield name
        finally:
            core.delete_namespace(name)
            core.api_client.close()

    def _wait_for_service_account(self, core: kubernetes_client.CoreV1Api, namespace: str) -> None:
        """Pods are refused before their namespace has its default service account."""

        def there() -> bool:
            accounts: list[Any] = core.list_namespaced_service_account(namespace).items
            return any(account.metadata.name == "default" for account in accounts)

        wait_until(there, what=f"the service account `default` in {namespace}", timeout=180)

    def stop_api(self) -> None:
        """Kill the API server; everything else stays."""
        self._plane.stop_api()

    def start_api(self) -> None:
        """Start the API server again at the same URL with the same data, and wait until it is ready."""
        self._plane.start_api()

    def restart(self) -> None:
        """Kill the API server and start it again."""
        self.stop_api()
        self.start_api()


@contextmanager
def running_api_server(directory: Path, *, programs: Programs | None = None) -> Iterator[Cluster]:
    """An API server of its own in `directory`, without any definitions; ends with the block."""
    plane = ControlPlane(
        directory=directory,
        programs=programs or find_or_build(KUBERNETES),
        settings=Settings(port=free_port(), controllers=CONTROLLERS),
    )
    try:
        plane.start()
        yield Cluster(plane)
    finally:
        plane.stop()
