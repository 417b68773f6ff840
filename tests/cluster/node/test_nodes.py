"""The nodes are nodes: pods run on them, find each other by name across them, and know who they are."""

from __future__ import annotations

import json
from typing import Any

from rig.cluster import NodeCluster
from rig.images import HOST
from rig.processes import wait_until

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(name: str, *command: str, node: str | None = None, **spec: Any) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": HOST,
        "imagePullPolicy": "Never",
        "command": list(command),
        "securityContext": RESTRICTED,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **({"nodeName": node} if node else {}),
            **spec,
        },
    }


def test_both_nodes_are_ready_and_differ(cluster: NodeCluster) -> None:
    listed = json.loads(cluster.kubectl("get", "nodes", "-o", "json").stdout)["items"]
    assert [node["metadata"]["name"] for node in listed] == ["node-0", "node-1"]
    assert {cluster.nodes[0].run("hostname").stdout, cluster.nodes[1].run("hostname").stdout} == {
        "node-0\n",
        "node-1\n",
    }


def test_a_pod_runs_the_projects_own_python_as_nobody_special(
    cluster: NodeCluster, pod_namespace: str
) -> None:
    program = "import ireko_api, os; print(os.getuid(), ireko_api.__file__)"
    cluster.kubectl("create", "-n", pod_namespace, "-f", "-", manifest=pod("own", "python", "-c", program))
    cluster.kubectl(
        "wait", "pod/own", "-n", pod_namespace, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=300s"
    )
    uid, file = cluster.kubectl("logs", "own", "-n", pod_namespace).stdout.split()
    assert uid == "1000"
    assert file.endswith("/crds/ireko_api/__init__.py")


def test_a_service_is_found_by_name_from_the_other_node(cluster: NodeCluster, pod_namespace: str) -> None:
    server = pod("web", "python3", "-m", "http.server", "8000", "--directory", "/etc", node="node-0")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    fetch = "import urllib.request as r; print(r.urlopen('http://web/passwd', timeout=5).read().decode()[:4])"
    headless = {**service, "metadata": {"name": "direct"}, "spec": {**service["spec"], "clusterIP": "None"}}
    for manifest in (server, service, headless):
        cluster.kubectl("create", "-n", pod_namespace, "-f", "-", manifest=manifest)
    cluster.kubectl("wait", "pod/web", "-n", pod_namespace, "--for=condition=Ready", "--timeout=300s")
    client = pod("client", "python3", "-c", fetch, node="node-1", restartPolicy="OnFailure")
    direct = pod(
        "direct-client",
        "python3",
        "-c",
        fetch.replace("//web", f"//direct.{pod_namespace}.svc.cluster.local:8000"),
        node="node-1",
        restartPolicy="OnFailure",
    )
    for manifest in (client, direct):
        cluster.kubectl("create", "-n", pod_namespace, "-f", "-", manifest=manifest)
    for name in ("client", "direct-client"):
        cluster.kubectl(
            "wait", f"pod/{name}", "-n", pod_namespace,
            "--for=jsonpath={.status.phase}=Succeeded", "--timeout=300s",
        )  # fmt: skip
        assert cluster.kubectl("logs", name, "-n", pod_namespace).stdout == "root\n"


def test_two_nodes_share_what_a_claim_stores(cluster: NodeCluster, pod_namespace: str) -> None:
    folder = cluster.shared_storage(pod_namespace)
    volumes = [{"name": "storage", "persistentVolumeClaim": {"claimName": "storage"}}]
    for index in (0, 1):
        manifest = pod(
            f"writer-{index}",
            "sh",
            "-c",
            f"echo {index} > /storage/{index}",
            node=f"node-{index}",
            volumes=volumes,
        )
        manifest["spec"]["containers"][0]["volumeMounts"] = [{"name": "storage", "mountPath": "/storage"}]
        cluster.kubectl("create", "-n", pod_namespace, "-f", "-", manifest=manifest)
    wait_until(
        lambda: sorted(path.name for path in folder.iterdir()) == ["0", "1"],
        what="both pods to have written",
        timeout=300,
    )


def test_a_memory_limit_kills(cluster: NodeCluster, pod_namespace: str) -> None:
    manifest = pod("greedy", "python3", "-c", "print(len(b'a' * (300 << 20)))")
    manifest["spec"]["containers"][0]["resources"] = {"limits": {"memory": "64Mi"}}
    cluster.kubectl("create", "-n", pod_namespace, "-f", "-", manifest=manifest)
    cluster.kubectl(
        "wait", "pod/greedy", "-n", pod_namespace, "--for=jsonpath={.status.phase}=Failed", "--timeout=300s"
    )
    state = json.loads(cluster.kubectl("get", "pod", "greedy", "-n", pod_namespace, "-o", "json").stdout)
    assert state["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"


def test_a_lost_node_is_noticed_and_takes_part_again_when_it_is_back(
    cluster: NodeCluster, pod_namespace: str
) -> None:
    manifest = pod("stays", "sleep", "600", node="node-1", tolerations=[])
    cluster.kubectl("create", "-n", pod_namespace, "-f", "-", manifest=manifest)
    cluster.kubectl("wait", "pod/stays", "-n", pod_namespace, "--for=condition=Ready", "--timeout=300s")
    cluster.kill_node(1)
    cluster.kubectl("wait", "node/node-1", "--for=condition=Ready=Unknown", "--timeout=300s")
    cluster.add_node(1)
    cluster.wait_for_nodes()
    again = pod("again", "true", node="node-1")
    cluster.kubectl("create", "-n", pod_namespace, "-f", "-", manifest=again)
    cluster.kubectl(
        "wait", "pod/again", "-n", pod_namespace, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=300s"
    )
