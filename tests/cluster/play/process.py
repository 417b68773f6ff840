"""`ireko operator` as a process of its own, as the chart's Deployment runs it."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from rig.api_server import Cluster
from rig.helm import Helm
from rig.processes import Process, free_port, wait_until

TRAINER_IMAGE = "ireko.test/trainer:dev"


class OperatorProcess(Process):
    """An operator with a port and a log of its own; it has been started and nothing more."""

    def __init__(self, *, kubeconfig: Path, log: Path, options: Sequence[str | Path] = ()) -> None:
        self.port = free_port()
        super().__init__(
            name="ireko-operator",
            command=[
                sys.executable,
                "-m",
                "ireko_operator.cli",
                "operator",
                f"--kubeconfig={kubeconfig}",
                f"--trainer-image={TRAINER_IMAGE}",
                "--host=127.0.0.1",
                f"--port={self.port}",
                *options,
            ],
            log=log,
            environment={"MLFLOW_DISABLE_TELEMETRY": "true"},
        )

    def ask(self, path: str) -> tuple[int, str]:
        """Status and text of a page; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of that name with these labels."""
        families = text_string_to_metric_families(self.ask("/metrics")[1])
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def leading(self) -> bool:
        return self.metric("ireko_leader") == 1.0

    def wait_ready(self, *, timeout: float = 90) -> None:
        """Until it leads or stands by."""
        wait_until(lambda: self.ask("/readyz")[0] == 200, what="readiness", timeout=timeout, watched=[self])

    def wait_leading(self, *, timeout: float = 90) -> None:
        """Until it leads and has seen everything."""
        wait_until(
            lambda: self.leading and self.ask("/readyz")[0] == 200,
            what="an operator that leads",
            timeout=timeout,
            watched=[self],
        )

    def wait_end(self, *, timeout: float = 60) -> int:
        """The exit status."""
        wait_until(lambda: not self.running, what="the end of the operator", timeout=timeout)
        return self._popen.wait()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged; text that is no JSON fails."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def complaints(self) -> list[str]:
        """Messages of warnings and worse."""
        return [line["message"] for line in self.lines() if line["level"] not in ("debug", "info")]


RELEASE = "ireko"
"""Name of the release, hence of its account and of its Lease."""


@contextmanager
def installed_account(cluster: Cluster, *, directory: Path, watch: Sequence[str] = ()) -> Iterator[Path]:
    """A kubeconfig of the account that the chart makes; the operator of the release itself is nowhere run.

    With `watch`, an account that has rights in those namespaces only.
    """
    helm = Helm(directory=directory, kubeconfig=cluster.kubeconfig)
    values = {
        "tracking": {"uri": "http://mlflow"},
        "crds": {"enabled": False},
        "kuberay": {"check": "Skip"},
        "watchNamespaces": list(watch),
    }
    with cluster.namespace() as home:
        helm.install(values, namespace=home, release=RELEASE)
        yield cluster.service_account(home, RELEASE)
        helm.uninstall(namespace=home, release=RELEASE)
