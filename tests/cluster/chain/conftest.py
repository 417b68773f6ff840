"""One release of the product for the tests of the chain, and one run that nothing happens to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chain import small_run
from chain.place import Place, Seen
from rig.cluster import NodeCluster


@pytest.fixture(scope="session")
def place(ray_cluster: NodeCluster, data_dir: Path) -> Iterator[Place]:
    """A namespace with what the small run reads; nothing of Ireko is installed yet."""
    with ray_cluster.namespace() as namespace:
        storage = ray_cluster.shared_storage(namespace, small_run.CLAIM)
        small_run.write_inputs(storage, sst2=data_dir / "glue" / "sst2")
        yield Place(cluster=ray_cluster, namespace=namespace, storage=storage)


@pytest.fixture(scope="session")
def undisturbed(place: Place) -> Seen:
    """Installed by Helm, applied by kubectl, and waited for."""
    name = "undisturbed"
    notes = place.install()
    place.apply(small_run.manifest(name))
    midway = place.wait_for(name, "progress", lambda status: status.get("progress", {}).get("percent", 0) > 0)
    header, row = place.kubectl("get", "crun", name, "-o", "wide").splitlines()
    nodes = tuple(pod["spec"]["nodeName"] for pod in place.pods(name, "worker"))
    status = place.wait_for_success(name)
    return Seen(
        name=name,
        notes=notes,
        midway=midway,
        row=dict(zip(header.split(), row.split(), strict=False)),
        nodes=nodes,
        status=status,
        registered=place.registered(name),
    )
