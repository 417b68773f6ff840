"""Values that a user would write."""

from __future__ import annotations

from typing import Any

VALUE_SETS: dict[str, dict[str, Any]] = {
    "own MLflow": {"tracking": {"uri": "http://mlflow.mlflow.svc:5000"}},
    "demo MLflow": {"demoMlflow": {"enabled": True, "allowedHosts": ["mlflow.example:443"]}},
    "namespaced": {
        "tracking": {"uri": "https://mlflow.example", "allowedUris": ["https://other.example"]},
        "watchNamespaces": ["team-a", "team-b"],
        "rbac": {"aggregateToDefaultRoles": False},
        "demoMlflow": {"enabled": False, "persistence": {"enabled": False}},
        "leaderElection": {"enabled": False},
        "crds": {"enabled": False},
    },
    "everything": {
        "fullnameOverride": "compression",
        "commonLabels": {"team": "edge"},
        "command": ["ireko"],
        "image": {"repository": "registry.example:5000/ireko", "digest": "sha256:" + "a" * 64},
        "imagePullSecrets": ["registry"],
        "replicas": 3,
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "podLabels": {"tier": "control"},
        "podAnnotations": {"example.com/note": "none"},
        "extraArgs": [],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraEnvFrom": [{"configMapRef": {"name": "settings"}}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
        "serviceAccount": {"annotations": {"example.com/role": "registrar"}},
        "tracking": {"uri": "https://mlflow.example", "credentialsSecret": "mlflow"},
        "submissionMode": "SidecarMode",
        "podDefaults": {
            "metadata": {"labels": {"team": "edge"}},
            "spec": {"runtimeClassName": "gvisor", "containers": [{"name": "trainer", "env": []}]},
        },
        "podExceptions": ["HostPath", "RunAsRoot"],
        "service": {"annotations": {"prometheus.io/scrape": "true"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {
            "enabled": True,
            "disabled": ["IrekoRunsPending"],
            "runbookBaseUrl": "https://git.example/ireko/blob/main/",
        },
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "ML"}},
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "extraEgress": [{"ports": [{"port": 3128, "protocol": "TCP"}]}],
        },
    },
}
