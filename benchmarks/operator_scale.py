"""How does the operator grow with the number of runs? Time, memory, writes and idle work for up to 3,000 of them.

    python benchmarks/operator_scale.py             # 100, 300, 1,000 and 3,000 runs
    python benchmarks/operator_scale.py --quick     # 100 and 1,000

Per number of runs a fresh control plane (etcd, kube-apiserver and the controllers that matter, on loopback), a real
MLflow server and the real `ireko operator` with its default settings, all on this machine. Then:

    apply   all CompressionRuns are created as fast as four threads can: `secondsToAllRayJobs` is the time from the
            first of them until the last RayJob exists. A player in the place of KubeRay sets every RayJob to
            Initializing and then to Running, as soon as it appears.
    idle    every RayJob is running and nothing happens: `idleCorePercent` is what the operator uses of one core,
            its questions to MLflow (every 15 s) and to the API server included.
    finish  ten of the runs are brought to their end: a trainer's stand-in logs a family of two models in MLflow,
            the RayJob completes, and the operator registers the models and says Succeeded.

`writesPerRun` is what the operator wrote to the API server for one run over its life: until it was idle (all runs) plus
from there to its end (the ten). Progress is not part of it: it is written at most every 15 s while it changes.
`operatorMiB` is the peak resident memory of the process. Goals for 1,000 runs: 60 s, 12 writes, 250 MiB, 2 %.
`processorSecondsToAllRayJobs` is what everything that takes part used until the last RayJob existed (the operator,
the control plane, the hands that apply and play): on a machine that is shared, read that instead of the time.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import urllib3
from cluster_rig import REPOSITORY

from ireko_api.handoff import RunRequest
from ireko_operator.kube.client import KubeClient, connect
from ireko_operator.kube.keys import CONFIG_MAPS, JOBS, RUNS
from ireko_operator.launch.rayjob import REQUEST_FILE
from play import trainer
from play.process import OperatorProcess
from play.world import manifest
from rig.api_server import Cluster, running_api_server
from rig.kuberay import install_kuberay_definitions
from rig.processes import Process, free_port, wait_until

COUNTS, QUICK_COUNTS = (100, 300, 1000, 3000), (100, 1000)
NAMESPACE = "default"
FINISHED = 10
IDLE_SECONDS, QUICK_IDLE_SECONDS = 120.0, 45.0
QUIET_SECONDS = 10.0
HANDS = 4
CRD = REPOSITORY / "crds" / "ireko.dev_compressionruns.yaml"


class Player:
    """KubeRay's part: hears of RayJobs and sets their states; remembers when the last of them appeared."""

    def __init__(self, cluster: Cluster) -> None:
        self._api = cluster.api_client()
        self._client = KubeClient(api=connect(kubeconfig=cluster.kubeconfig), seconds=60)
        self._arrivals: SimpleQueue[str] = SimpleQueue()
        self.appeared: dict[str, float] = {}
        self.running: set[str] = set()
        self._ended = False
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        for number in range(2):
            threading.Thread(target=self._play, name=f"play-{number}", daemon=True).start()

    def say(self, job: str, deployment: str, status: str = "") -> None:
        """Write a RayJob's status."""
        self._client.apply(
            JOBS,
            namespace=NAMESPACE,
            name=job,
            subresource="status",
            manager="kuberay",
            body={
                "apiVersion": "ray.io/v1",
                "kind": "RayJob",
                "metadata": {"name": job, "namespace": NAMESPACE},
                "status": {
                    "jobDeploymentStatus": deployment,
                    "jobStatus": status,
                    "rayClusterName": f"{job}-cluster",
                    "startTime": "2026-01-01T00:00:00Z",
                },
            },
        )

    def end(self) -> None:
        """The API server is about to go."""
        self._ended = True

    def _listen(self) -> None:
        answer = self._api.rest_client.pool_manager.request(
            "GET",
            f"{self._api.configuration.host}{JOBS.path(NAMESPACE)}?watch=1&timeoutSeconds=86400",
            headers={"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"},
            preload_content=False,
        )
        rest = b""
        try:
            for chunk in answer.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
        except urllib3.exceptions.HTTPError:
            if not self._ended:
                raise

    def _hear(self, event: Mapping[str, Any]) -> None:
        name = event["object"]["metadata"].get("name")
        if event["type"] == "ADDED" and name not in self.appeared:
            self.appeared[name] = time.monotonic()
            self._arrivals.put(name)

    def _play(self) -> None:
        while True:
            job = self._arrivals.get()
            self.say(job, "Initializing")
            self.say(job, "Running", "RUNNING")
            self.running.add(job)


@contextmanager
def mlflow_server(directory: Path) -> Iterator[str]:
    """An MLflow server on a database of its own; its address."""
    port = free_port()
    process = Process(
        name="mlflow",
        command=[
            *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{directory / 'mlflow.db'}",
            f"--artifacts-destination={directory / 'artifacts'}",
        ],
        log=directory / "mlflow.log",
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    try:
        wait_until(lambda: _listens(port), what="MLflow", timeout=600, watched=[process])
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()


def _listens(port: int) -> bool:
    try:
        return bool(
            urllib3.request("GET", f"http://127.0.0.1:{port}/health", timeout=5, retries=False).status == 200
        )
    except urllib3.exceptions.HTTPError:
        return False


@dataclass(kw_only=True)
class Stage:
    """One control plane with an operator on it, and the runs that it is given."""

    cluster: Cluster
    operator: OperatorProcess
    player: Player
    directory: Path
    count: int

    def apply(self) -> tuple[float, float]:
        """Create every run; until every RayJob exists: seconds, and processor seconds of all that took part."""
        hands = [
            KubeClient(api=connect(kubeconfig=self.cluster.kubeconfig), seconds=60) for _ in range(HANDS)
        ]

        def create(number: int) -> None:
            body = manifest(f"run-{number:04d}")
            hands[number % HANDS].create(RUNS, namespace=NAMESPACE, body=body, manager="person")

        started, used = time.monotonic(), self._processor_seconds()
        with ThreadPoolExecutor(HANDS) as pool:
            list(pool.map(create, range(self.count)))
        print(f"{self.count}: all runs exist after {time.monotonic() - started:.1f} s", file=sys.stderr)
        self._wait(lambda: len(self.player.appeared) == self.count, "every RayJob")
        return max(self.player.appeared.values()) - started, self._processor_seconds() - used

    def _processor_seconds(self) -> float:
        return sum(map(cpu_seconds, (os.getpid(), self.operator.pid, *self.cluster.pids.values())))

    def settle(self) -> None:
        """Wait until the operator has seen every RayJob running and has written all that it wants to."""
        self._wait(lambda: len(self.player.running) == self.count, "every RayJob to run")
        self._wait(lambda: self.operator.metric("ireko_runs", phase="Running") == self.count, "phase Running")
        writes, since = -1.0, time.monotonic()
        while time.monotonic() - since < QUIET_SECONDS:
            if (now := self.writes()) != writes:
                writes, since = now, time.monotonic()
            time.sleep(1)

    def idle(self, seconds: float) -> float:
        """Share of a core in percent that the operator uses while nothing happens."""
        before, started = cpu_seconds(self.operator.pid), time.monotonic()
        time.sleep(seconds)
        return 100 * (cpu_seconds(self.operator.pid) - before) / (time.monotonic() - started)

    def finish(self) -> float:
        """Bring some runs to their end; the operator's writes for one of them."""
        before = self.writes()
        client = KubeClient(api=connect(kubeconfig=self.cluster.kubeconfig), seconds=60)
        jobs = sorted(self.player.appeared)[:FINISHED]
        for job in jobs:
            request = client.get(CONFIG_MAPS, namespace=NAMESPACE, name=job)["data"][REQUEST_FILE]
            with redirect_stdout(io.StringIO()):  # MLflow announces every run
                trainer.finish(
                    RunRequest.model_validate_json(request),
                    artifacts=self.directory / "artifacts",
                    scratch=self.directory / "scratch",
                )
            self.player.say(job, "Complete", "SUCCEEDED")
        self._wait(
            lambda: self.operator.metric("ireko_runs", phase="Succeeded") == len(jobs), "phase Succeeded"
        )
        time.sleep(QUIET_SECONDS)
        return (self.writes() - before) / len(jobs)

    def writes(self) -> float:
        """The writes that the operator has sent so far."""
        return self.operator.metric("ireko_api_writes_total")

    def _wait(self, holds: Any, what: str) -> None:
        wait_until(holds, what=what, timeout=120 + self.count, watched=[self.operator])


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, what: str) -> float:
    """Resident memory: VmRSS now, VmHWM at its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{what}:")) / 1024


def measure(count: int, *, idle_seconds: float) -> Mapping[str, float]:
    """Everything about one number of runs."""
    with (
        tempfile.TemporaryDirectory(prefix="ireko-scale-") as name,
        running_api_server(Path(name) / "cluster") as cluster,
        mlflow_server(Path(name)) as mlflow,
    ):
        directory = Path(name)
        (directory / "scratch").mkdir()
        cluster.install_definitions(CRD)
        install_kuberay_definitions(cluster)
        operator = OperatorProcess(
            kubeconfig=cluster.kubeconfig,
            log=directory / "operator.log",
            options=[f"--tracking-uri={mlflow}"],
        )
        try:
            operator.wait_leading()
            empty = memory_mib(operator.pid, "VmRSS")
            player = Player(cluster)
            stage = Stage(cluster=cluster, operator=operator, player=player, directory=directory, count=count)
            seconds, processor_seconds = stage.apply()
            stage.settle()
            writes = stage.writes() / count
            used = cpu_seconds(operator.pid)
            idle = stage.idle(idle_seconds)
            writes += stage.finish()
            player.end()
            row = {
                "secondsToAllRayJobs": round(seconds, 1),
                "operatorMiB": round(memory_mib(operator.pid, "VmHWM")),
                "writesPerRun": round(writes, 2),
                "idleCorePercent": round(idle, 2),
                "emptyMiB": round(empty),
                "processorSecondsToAllRayJobs": round(processor_seconds, 1),
                "operatorProcessorSecondsUntilIdle": round(used, 1),
                "failedPasses": round(operator.metric("ireko_reconcile_total", result="error")),
            }
        finally:
            operator.stop()
            complaints = operator.complaints()
            for line in complaints[:5]:
                print(f"{count}: {line}", file=sys.stderr)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="100 and 1,000 runs, and a shorter look at the idle operator"
    )
    parser.add_argument("--runs", type=int, nargs="+", help="numbers of runs instead of the usual ones")
    options = parser.parse_args(arguments)
    counts = options.runs or (QUICK_COUNTS if options.quick else COUNTS)
    results: dict[str, Mapping[str, float]] = {}
    for count in counts:
        results[str(count)] = measure(
            count, idle_seconds=QUICK_IDLE_SECONDS if options.quick else IDLE_SECONDS
        )
        print(f"{count}: {results[str(count)]}", file=sys.stderr, flush=True)
    versions = {name: version(name) for name in ("kopf", "kubernetes", "mlflow")}
    versions["python"] = platform.python_version()
    print(json.dumps({"benchmark": "operator_scale", "results": results, "versions": versions}))


if __name__ == "__main__":
    main()
