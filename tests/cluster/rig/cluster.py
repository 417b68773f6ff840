"""The node tier: a control plane, a switch and nodes, as one object that a test or a person holds."""

from __future__ import annotations

import shutil
import site
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rig import cgroups
from rig.api_server import Cluster
from rig.binaries import KUBERAY, KUBERNETES, find_or_build
from rig.control_plane import ControlPlane, Settings
from rig.errors import RigError, UnavailableError
from rig.images import write_pause_image, write_program_images
from rig.machine import require_node_tier
from rig.network import SLOTS_OF_TESTS, Addresses, Switch, a_free_slot
from rig.node import HIDDEN, Node, Place
from rig.processes import Process, wait_until
from rig.storage import bound_claim, open_folder, volumes_on_offer

REPOSITORY = Path(__file__).resolve().parents[3]

ENVIRONMENT_IN_IMAGES = Path("/opt/ireko")
"""Where the Dockerfile puts the virtual environment."""

_TEMPORARY = Path("/tmp")

_NODE_GRACE_SECONDS = 16
"""After how long without news a node counts as lost; the default of 40 s would be waiting in every fault test."""

_FAULT_FLAGS = ("--node-monitor-period=1s", f"--node-monitor-grace-period={_NODE_GRACE_SECONDS}s")


class NodeCluster(Cluster):
    """A cluster with nodes: everything that a `Cluster` has, and pods that run."""

    def __init__(self, *, plane: ControlPlane, place: Place, storage: Path) -> None:
        super().__init__(plane)
        self._place = place
        self._storage = storage
        self.nodes: dict[int, Node] = {}

    @property
    def addresses(self) -> Addresses:
        """Who has which IP address."""
        return self._place.switch.addresses

    def add_node(self, index: int) -> Node:
        """Start node `index` (again); it is not Ready yet when this returns."""
        node = Node(index=index, place=self._place)
        self.nodes[index] = node
        return node

    def kill_node(self, index: int) -> None:
        """Pull the plug of node `index`. The API server notices when the node's heartbeats stay away."""
        self.nodes.pop(index).stop()

    def wait_for_nodes(self, *, timeout: float = 300) -> None:
        """Wait until every running node is Ready."""

        known = self.client().resources.get(api_version="v1", kind="Node")

        def ready() -> bool:
            conditions = {
                node.metadata.name: {item.type: item.status for item in node.status.conditions or ()}
                for node in known.get().items
            }
            return all(conditions.get(node.name, {}).get("Ready") == "True" for node in self.nodes.values())

        watched = [node.init for node in self.nodes.values()]
        wait_until(ready, what="the nodes to become Ready", timeout=timeout, watched=watched)

    def shared_storage(self, namespace: str, claim: str = "storage", *, size: str = "20Gi") -> Path:
        """Give `namespace` a bound claim for a folder that all nodes share; the folder, as this machine sees it."""
        folder = open_folder(self._storage / namespace / claim)
        self.apply_all(bound_claim(namespace=namespace, claim=claim, folder=folder, size=size))
        return folder

    def offer_volumes(self, *, count: int = 8, size: str = "20Gi") -> Path:
        """Let claims of any namespace find storage, `count` of them; the folder that holds what they store."""
        folder = self._storage / "offered"
        self.apply_all(volumes_on_offer(folder=folder, count=count, size=size))
        return folder

    def stop(self) -> None:
        """End every node; their containers' files go, their logs stay."""
        for index in list(self.nodes):
            self.kill_node(index)
        for directory in self._place.directory.glob("node-*"):
            for part in ("containerd", "kubelet"):
                shutil.rmtree(directory / part, ignore_errors=True)


@contextmanager
def running_cluster(
    directory: Path, *, nodes: int = 1, slots: Sequence[int] = SLOTS_OF_TESTS
) -> Iterator[NodeCluster]:
    """A cluster in `directory` with all nodes Ready, in the first free slot; nothing of it is left after the block.

    Raises UnavailableError where this machine cannot have nodes.
    """
    require_node_tier()
    mounted = programs_in_pods()
    _refuse_hidden([directory, *mounted.values()])
    require_visible(mounted)
    with (
        a_free_slot(slots) as addresses,
        _switch(addresses, directory) as switch,
        _control_plane(directory, switch) as plane,
    ):
        place = Place(
            directory=directory,
            programs=plane.programs,
            plane=plane,
            switch=switch,
            images=_write_images(directory, pause=plane.programs.path("pause")),
            mounted=mounted,
        )
        cluster = NodeCluster(plane=plane, place=place, storage=directory / "storage")
        try:
            for index in range(nodes):
                cluster.add_node(index)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.stop()


@contextmanager
def _switch(addresses: Addresses, directory: Path) -> Iterator[Switch]:
    for remaining in cgroups.remaining(f"ireko{addresses.slot}-"):
        cgroups.remove(remaining.name)
    switch = Switch(addresses=addresses, log=directory / "log")
    try:
        yield switch
    finally:
        switch.stop()


@contextmanager
def _control_plane(directory: Path, switch: Switch) -> Iterator[ControlPlane]:
    plan = switch.addresses
    plane = ControlPlane(
        directory=directory,
        programs=find_or_build(KUBERNETES),
        settings=Settings(
            address=plan.switch,
            port=6443,
            services=plan.services,
            first_service=plan.first_service,
            prefix=switch.prefix,
            nodes=True,
            controller_flags=_FAULT_FLAGS,
        ),
    )
    try:
        plane.start()
        dns = _start_dns(plane, switch)
        try:
            yield plane
        finally:
            dns.kill()
    finally:
        plane.stop()


def _start_dns(plane: ControlPlane, switch: Switch) -> Process:
    """The cluster's DNS, beside the bridge."""
    return Process(
        name="dns",
        command=[
            sys.executable,
            "-m",
            "rig.dns",
            plane.identity("cluster-dns", groups=["system:masters"]),
            switch.addresses.switch,
        ],
        log=plane.directory / "log" / "dns.log",
        environment={"PYTHONPATH": str(Path(__file__).parents[1])},
        prefix=switch.prefix,
    )


def _write_images(directory: Path, *, pause: Path) -> list[Path]:
    images = directory / "images"
    images.mkdir(exist_ok=True)
    return [
        write_pause_image(images / "pause.tar", program=pause),
        *write_program_images(images, dockerfile=REPOSITORY / "Dockerfile"),
    ]


def programs_in_pods() -> dict[Path, Path]:
    """What every container finds of this machine, by the place where it finds it: all that Python, Ireko and KubeRay
    consist of."""
    wanted = {
        Path("/usr"),
        REPOSITORY,
        Path(sys.prefix),
        Path(sys.base_prefix).resolve(),
        Path(sys.base_prefix),
        find_or_build(KUBERAY).directory,
        *map(Path, site.getsitepackages()),
    }
    return {**{path: path for path in _without_nested(wanted)}, ENVIRONMENT_IN_IMAGES: Path(sys.prefix)}


def require_visible(paths: Iterable[Path]) -> None:
    """Refuse what pods with a /tmp of their own, as Ireko's are, would not find in it."""
    for path in paths:
        if path.is_relative_to(_TEMPORARY):
            raise UnavailableError(
                f"{path} lies in {_TEMPORARY}, of which pods have one of their own; with a checkout and an "
                "environment elsewhere it runs"
            )


def _without_nested(paths: Iterable[Path]) -> list[Path]:
    """`paths` without those that lie in another of them."""
    kept: list[Path] = []
    for path in sorted(paths, key=lambda path: len(path.parts)):
        if not any(path.is_relative_to(above) for above in kept):
            kept.append(path)
    return kept


def _refuse_hidden(paths: Sequence[Path]) -> None:
    for path in paths:
        for hidden in HIDDEN:
            if path.resolve().is_relative_to(hidden):
                raise RigError(
                    f"{path} lies in {hidden}, which nodes have anew: move it elsewhere (or set TMPDIR)"
                )
