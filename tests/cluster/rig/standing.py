"""A cluster that stands until it is told to go: what `make cluster` starts and `make cluster-down` ends.

One process in the background holds it, exactly as a test session would. So there is one way down, and what the
tests prove about it holds here: end that process, and everything is gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rig import cgroups
from rig.binaries import say
from rig.cluster import REPOSITORY, NodeCluster, running_cluster
from rig.errors import RigError
from rig.kuberay import install_kuberay
from rig.network import SLOT_OF_A_PERSON, SLOTS_OF_TESTS
from rig.processes import wait_until
from rig.product import install_ireko

CLAIM = "ireko"
"""The claim in the namespace `default` for the storage of runs."""

_START_SECONDS = 1500
_STOP_SECONDS = 180


@dataclass(frozen=True)
class Place:
    """Where the cluster of a checkout keeps its state."""

    directory: Path = REPOSITORY / ".ireko" / "cluster"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; it exists while the cluster is up."""
        return self.directory / "admin.kubeconfig"

    @property
    def holder(self) -> Path:
        """The process id of what holds the cluster."""
        return self.directory / "pid"

    @property
    def slot(self) -> Path:
        """The number of the slot that the cluster has."""
        return self.directory / "slot"

    @property
    def ready(self) -> Path:
        """Exists once everything is installed."""
        return self.directory / "ready"

    @property
    def storage(self) -> Path:
        """What the claim `ireko` in the namespace `default` holds, as this machine sees it."""
        return self.directory / "storage" / "default" / CLAIM

    @property
    def notes(self) -> Path:
        """What Helm said at the end of the installation."""
        return self.directory / "notes"

    @property
    def log(self) -> Path:
        """What the holder says."""
        return self.directory.with_suffix(".log")

    def running(self) -> int | None:
        """The process that holds the cluster, or None."""
        try:
            pid = int(self.holder.read_text(encoding="utf-8"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ValueError):
            return None
        return pid if b"rig\0hold" in command else None


def hold(place: Place, *, nodes: int) -> None:
    """Bring the cluster up, install everything, and keep it until SIGTERM or SIGINT."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    shutil.rmtree(place.directory, ignore_errors=True)
    place.directory.mkdir(parents=True)
    place.holder.write_text(str(os.getpid()), encoding="utf-8")
    try:
        say(f"Starting {nodes} nodes")
        with running_cluster(
            place.directory, nodes=nodes, slots=[SLOT_OF_A_PERSON, *SLOTS_OF_TESTS]
        ) as cluster:
            place.slot.write_text(str(cluster.addresses.slot), encoding="utf-8")
            for what, install in INSTALLED.items():
                say(f"Installing {what}")
                install(cluster)
            place.ready.touch()
            signal.pause()
    finally:
        shutil.rmtree(place.directory)


def _leave(*_: object) -> None:
    """Go, taking the cluster down on the way; a second signal must not interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit()


def _install_ireko(cluster: NodeCluster) -> None:
    notes = install_ireko(
        cluster, helm_home=cluster.directory / "helm", values={"demoMlflow": {"enabled": True}}
    )
    Place(cluster.directory).notes.write_text(notes, encoding="utf-8")


def _install_storage(cluster: NodeCluster) -> None:
    """Volumes for whoever claims some, and one claim that already holds what the quickstart trains on."""
    cluster.offer_volumes()
    text = REPOSITORY / "examples" / "quickstart_text.py"
    folder = cluster.shared_storage("default", CLAIM)
    subprocess.run([sys.executable, text, folder / "quickstart-text.jsonl"], check=True)


INSTALLED: dict[str, Callable[[NodeCluster], object]] = {
    "storage that the nodes share": _install_storage,
    "KubeRay": install_kuberay,
    "Ireko and a demo MLflow, by its chart": _install_ireko,
}
"""What a person finds in the cluster, in the order of its installation."""


def up(place: Place, *, nodes: int) -> None:
    """Start what holds the cluster and wait until everything is installed, showing what it says meanwhile."""
    if place.running():
        raise RigError(f"the cluster of {place.directory} is up already: end it with `make cluster-down`")
    place.log.parent.mkdir(parents=True, exist_ok=True)
    with place.log.open("wb") as log:
        holder = subprocess.Popen(
            [sys.executable, "-m", "rig", "hold", f"--nodes={nodes}", f"--directory={place.directory}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
    with place.log.open(encoding="utf-8", errors="replace") as said:

        def done() -> bool:
            print(said.read(), end="", flush=True)
            return place.ready.exists() or holder.poll() is not None

        wait_until(done, what=f"the cluster (see {place.log})", timeout=_START_SECONDS)
    if holder.poll() is not None:
        raise RigError(f"the cluster did not start: see {place.log}")


def down(place: Place) -> bool:
    """End the cluster; False when there was none. Whatever a killed holder left is removed as well."""
    pid = place.running()
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        wait_until(
            lambda: not Path(f"/proc/{pid}").exists(), what=f"process {pid} to end", timeout=_STOP_SECONDS
        )
    if place.slot.exists():
        for group in cgroups.remaining(f"ireko{place.slot.read_text(encoding='utf-8')}-"):
            cgroups.remove(group.name)
    shutil.rmtree(place.directory, ignore_errors=True)
    return pid is not None
