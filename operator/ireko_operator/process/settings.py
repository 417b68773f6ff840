"""What the operator is told when it starts."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ireko_operator.errors import UsageError
from ireko_operator.launch.platform import PolicyException, SubmissionMode
from ireko_operator.process.logs import LogFormat

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """The settings of one operator process; each is an option of `ireko operator` and a variable IREKO_…."""

    namespaces: tuple[str, ...] = ()
    """The namespaces whose runs are handled; none means those of the whole cluster."""
    trainer_image: str
    tracking_uri: str | None = None
    allowed_tracking_uris: frozenset[str] = frozenset()
    pod_defaults: dict[str, Any] = field(default_factory=dict)
    exceptions: frozenset[PolicyException] = frozenset()
    submission_mode: SubmissionMode = SubmissionMode.K8S_JOB
    workers: int = 4
    progress_interval: float = 15.0
    """Seconds between two looks at MLflow, and at least between two writes of a run's progress."""
    leader_elect: bool = True
    lease_name: str = "ireko-operator"
    lease_namespace: str = "default"
    identity: str
    """What the Lease calls this process: different for every process that ever was."""
    host: str = "0.0.0.0"
    port: int = 8080
    """Of /healthz, /readyz and /metrics; 0 takes a free one."""
    log_format: LogFormat = "json"
    log_level: str = "info"
    kubeconfig: Path | None = None
    stop_grace: float = 12.0
    """Seconds that passes which are under way have to end when the process is asked to stop."""


def own_identity() -> str:
    """A name for this process that no other process has had."""
    return f"{socket.gethostname()}_{os.urandom(6).hex()}"


def own_namespace() -> str:
    """The namespace of the pod that this is, or `default` outside of a cluster."""
    try:
        return _OWN_NAMESPACE.read_text(encoding="utf-8").strip() or "default"
    except OSError:
        return "default"


def read_pod_defaults(file: Path | None) -> dict[str, Any]:
    """The administrator's pod template; `UsageError` names what is wrong with the file."""
    if file is None:
        return {}
    try:
        template = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--pod-defaults {file}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--pod-defaults {file} is no YAML: {' '.join(str(error).split())}.") from error
    if template is None:
        return {}
    if not isinstance(template, dict) or not set(template) <= {"metadata", "spec"}:
        raise UsageError(
            f"--pod-defaults {file} must be a pod template: an object with `metadata` and `spec` and nothing else."
        )
    return template
