"""An MLflow server in the cluster: a real database and a real artifact store, on storage that outlives its pod."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rig.cluster import NodeCluster
from rig.images import HOST

NAMESPACE = "mlflow"
PORT = 5000
URL = f"http://mlflow.{NAMESPACE}.svc.cluster.local:{PORT}"
"""Where pods reach it."""


def install_mlflow(cluster: NodeCluster) -> Path:
    """Start MLflow and wait until it answers; the folder with its database and artifacts."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    cluster.apply("-f", "-", manifest=namespace)
    folder = cluster.shared_storage(NAMESPACE)
    cluster.apply_all([_service(), _deployment()])
    cluster.kubectl("rollout", "status", "deployment/mlflow", "-n", NAMESPACE, "--timeout=600s", timeout=620)
    return folder


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "mlflow", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "mlflow"}, "ports": [{"port": PORT}]},
    }


def _deployment() -> dict[str, Any]:
    labels = {"app": "mlflow"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mlflow", "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            # One writer per database.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _pod()},
        },
    }


def _pod() -> dict[str, Any]:
    server = [
        "mlflow",
        "server",
        "--host=0.0.0.0",
        f"--port={PORT}",
        "--workers=1",
        "--backend-store-uri=sqlite:////storage/mlflow.db",
        "--artifacts-destination=/storage/artifacts",
        "--allowed-hosts=*",
    ]
    container = {
        "name": "mlflow",
        "image": HOST,
        "imagePullPolicy": "Never",
        "command": server,
        # Half a dozen idle processes otherwise, for a feature that nothing here uses.
        "env": [{"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"}],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "storage", "mountPath": "/storage"}],
        "resources": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "automountServiceAccountToken": False,
        # Otherwise the address of the Service would arrive as MLFLOW_PORT, which MLflow reads as its own setting.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsUser": 10001,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": "storage"}}],
    }
