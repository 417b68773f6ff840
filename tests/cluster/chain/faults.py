"""What may happen to a run while it trains: each fault is one function that disturbs and mends again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from chain.place import Object, Place, kill_containers
from rig import mlflow, product
from rig.processes import wait_until

Fault = Callable[[Place, str], None]
"""Disturbs the run of that name. When it returns, whatever a person would have to mend is mended."""

MLFLOW_AWAY_SECONDS = 120
_PATIENCE_SECONDS = 1200
_LEAVES_AT_ONCE = ("--grace-period=0", "--force", "--wait=false")


def kill_worker_pod(place: Place, run: str) -> None:
    """One of two workers goes without a word."""
    _delete_pod(place, run, "worker")


def kill_head(place: Place, run: str) -> None:
    """The pod that leads goes, and with it all that Ray knows."""
    _delete_pod(place, run, "head")


def _delete_pod(place: Place, run: str, role: str) -> None:
    pods = place.pods(run, role)
    if pods:  # between two attempts there is none to lose
        name = pods[0]["metadata"]["name"]
        place.kubectl("delete", "pod", name, "--ignore-not-found", *_LEAVES_AT_ONCE)


def kill_node(place: Place, run: str) -> None:
    """The plug of a node with a worker is pulled; somebody puts it back in once everybody has noticed."""
    workers = place.pods(run, "worker")
    last = max(place.cluster.nodes)
    name = workers[0]["spec"]["nodeName"] if workers else place.cluster.nodes[last].name
    index = next(index for index, node in place.cluster.nodes.items() if node.name == name)
    place.cluster.kill_node(index)
    lost = ("--for=condition=Ready=Unknown", f"node/{name}", f"--timeout={_PATIENCE_SECONDS}s")
    place.cluster.kubectl("wait", *lost, timeout=_PATIENCE_SECONDS + 20)
    place.cluster.add_node(index)
    place.cluster.wait_for_nodes(timeout=_PATIENCE_SECONDS)


def kill_operator(place: Place, _run: str) -> None:
    """SIGKILL: no lease is given back, no write is finished."""
    for pod in _operators(place):
        kill_containers(pod)


def run_two_operators(place: Place, _run: str) -> None:
    """A second operator stands by, and takes over when the first one dies."""
    place.cluster.kubectl("scale", f"deployment/{product.RELEASE}", "-n", product.NAMESPACE, "--replicas=2")
    wait_until(
        lambda: len(_operators(place)) == 2, what="a second operator", timeout=_PATIENCE_SECONDS, every=1
    )
    product.wait_for_deployments(place.cluster, product.NAMESPACE, seconds=_PATIENCE_SECONDS)
    holder = place.cluster.kubectl(
        "get", "lease", product.RELEASE, "-n", product.NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"
    ).stdout
    for pod in _operators(place):
        if pod["metadata"]["name"] in holder:
            kill_containers(pod)


def _operators(place: Place) -> list[Object]:
    return place.listed("pods", "app.kubernetes.io/name=ireko", namespace=product.NAMESPACE)


def take_mlflow_away(place: Place, _run: str, *, seconds: float = MLFLOW_AWAY_SECONDS) -> None:
    """No metric, no progress and no registration for a while."""
    _scale_mlflow(place, 0)
    place.cluster.kubectl(
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "app=mlflow",
        "-n",
        mlflow.NAMESPACE,
        "--timeout=300s",
        timeout=320,
    )
    time.sleep(seconds)
    _scale_mlflow(place, 1)
    product.wait_for_deployments(place.cluster, mlflow.NAMESPACE, seconds=_PATIENCE_SECONDS)


def _scale_mlflow(place: Place, replicas: int) -> None:
    place.cluster.kubectl("scale", "deployment/mlflow", "-n", mlflow.NAMESPACE, f"--replicas={replicas}")


def restart_api_server(place: Place, _run: str) -> None:
    """Killed and started again: every watch breaks, every write under way has no answer."""
    place.cluster.restart()


def suspend_and_resume(place: Place, run: str) -> None:
    """Somebody needs the nodes for something else, for a while."""
    _set_suspend(place, run, "true")
    # A pause that comes when the training is over changes nothing any more.
    paused = place.wait_for(
        run, "its pause", lambda status: status.get("phase") in ("Suspended", "Succeeded")
    )
    if paused["phase"] == "Succeeded":
        return
    wait_until(
        lambda: not place.pods(run, "head") and not place.pods(run, "worker"),
        what="the pods to go",
        timeout=_PATIENCE_SECONDS,
        every=1,
    )
    _set_suspend(place, run, "false")


def _set_suspend(place: Place, run: str, value: str) -> None:
    place.kubectl("patch", "crun", run, "--type=merge", "-p", f'{{"spec":{{"suspend":{value}}}}}')


FAULTS: Mapping[str, Fault] = {
    "worker pod killed": kill_worker_pod,
    "Ray head killed": kill_head,
    "node killed": kill_node,
    "operator killed": kill_operator,
    "MLflow down for two minutes": take_mlflow_away,
    "API server restarted": restart_api_server,
    "suspended and resumed": suspend_and_resume,
    "two operators at once": run_two_operators,
}
