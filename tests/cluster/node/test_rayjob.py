"""A plain RayJob, two workers on two nodes, from `kubectl apply` to SUCCEEDED."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rig.cluster import NodeCluster
from rig.images import TRAINER

RAY = str(Path(sys.executable).parent)

PROGRAM = """
import socket, ray
ray.init()

@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_id()

group = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
ray.get(group.ready())
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Spread
tasks = [where.options(scheduling_strategy=Spread(group, placement_group_bundle_index=i)).remote() for i in (0, 1)]
print("WORKERS", len(set(ray.get(tasks))), flush=True)
"""


def container(name: str, **fields: Any) -> dict[str, Any]:
    environment = {
        "HOME": "/tmp",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_NUM_REDIS_GET_RETRIES": "300",
        "RAY_memory_usage_threshold": "1.0",
    }
    return {
        "name": name,
        "image": TRAINER,
        "imagePullPolicy": "Never",
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "4Gi"}},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "program", "mountPath": "/program"},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        **fields,
    }


def template(main: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": "probe"}},
        "spec": {
            "containers": [main],
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory"}},
                {"name": "program", "configMap": {"name": "program"}},
            ],
            "securityContext": {
                "runAsUser": 1000,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **spec,
        },
    }


def rayjob() -> dict[str, Any]:
    start = {"object-store-memory": "100000000"}
    apart = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"ray.io/node-type": "worker"}},
                }
            ]
        }
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "probe"},
        "spec": {
            "entrypoint": "python /program/main.py",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "submitterPodTemplate": template(container("submitter"), restartPolicy="Never"),
            "rayClusterSpec": {
                "rayVersion": "2.60.0",
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", **start},
                    "template": template(container("ray-head")),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": 2,
                        "minReplicas": 2,
                        "maxReplicas": 2,
                        "rayStartParams": {"num-cpus": "1", **start},
                        "template": template(container("ray-worker"), affinity=apart),
                    }
                ],
            },
        },
    }


def test_a_rayjob_with_workers_on_two_nodes_succeeds(ray_cluster: NodeCluster, pod_namespace: str) -> None:
    program = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "program"},
        "data": {"main.py": PROGRAM},
    }
    for manifest in (program, rayjob()):
        ray_cluster.kubectl("create", "-n", pod_namespace, "-f", "-", manifest=manifest)
    ray_cluster.kubectl(
        "wait", "rayjob/probe", "-n", pod_namespace,
        "--for=jsonpath={.status.jobDeploymentStatus}=Complete", "--timeout=420s", timeout=440,
    )  # fmt: skip
    status = json.loads(
        ray_cluster.kubectl("get", "rayjob", "probe", "-n", pod_namespace, "-o", "json").stdout
    )["status"]
    assert status["jobStatus"] == "SUCCEEDED"
    (pod,) = ray_cluster.kubectl(
        "get", "pods", "-n", pod_namespace, "-l", "job-name=probe", "-o", "name"
    ).stdout.split()
    assert "WORKERS 2" in ray_cluster.kubectl("logs", pod, "-n", pod_namespace).stdout
