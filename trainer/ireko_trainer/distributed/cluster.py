"""The Ray cluster that the workers run on: one that this process was started in, or one of this machine alone.

KubeRay hands the trainer to the head of a cluster by a Ray job, and Ray tells a job where its cluster is by
`RAY_ADDRESS`. A laptop has no such variable; a Ray that happens to run there is none of the trainer's business.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import torch

from ireko_trainer.errors import UserError

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig

log = logging.getLogger(__name__)

_ADDRESS = "RAY_ADDRESS"
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_PATIENCE_SECONDS = 12 * 3600
"""How long workers wait for each other: while the first one chooses shapes, the others do nothing else. A
worker that is gone is noticed by Ray."""

_START_TRIES = 3
"""Ray gives itself 30 seconds to start, which are too short on a machine that is busy with something else."""
_START_TIMED_OUT = "timed out during startup"


class RayStartError(UserError):
    """Ray could not be started on this machine."""

    reason = "WorkerLost"


def in_cluster() -> bool:
    """Whether this process is the driver of a job on a Ray cluster."""
    return bool(os.environ.get(_ADDRESS))


@contextmanager
def ray_cluster(*, cpus: float, gpus: float) -> Iterator[None]:
    """Connect to the cluster, or start one of this machine, and leave nothing of it behind.

    Raises UserError when the workers ask for more than this machine has, RayStartError when Ray does not start.
    """
    import ray

    with _own_signal_handlers():
        if in_cluster():
            ray.init(address="auto", log_to_driver=True)
        else:
            _require_room(cpus=cpus, gpus=gpus)
            _start()
    try:
        yield
    finally:
        # Ray's controller actors outlive a driver that goes without a word.
        ray.shutdown()


def _start() -> None:
    """Start Ray on this machine.

    Raises RayStartError when Ray is not up after several tries.
    """
    import ray

    for left in reversed(range(_START_TRIES)):
        try:
            # Without a dashboard Ray Train's helpers complain once a second; workers keep logs of their own.
            # "local": a cluster that somebody began with `ray start` on this machine is not ours to use.
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray raises this one as a bare Exception
            if _START_TIMED_OUT not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise RayStartError(
                    f"Ray did not start in {_START_TRIES} tries of 30 seconds: the machine is too busy or short of "
                    "memory. Nothing is lost: run the same command again when it is less busy, or set "
                    "spec.compute.workers to 0 to train without Ray"
                ) from error
            log.warning("Ray did not start in time; trying again")
        else:
            return


def _require_room(*, cpus: float, gpus: float) -> None:
    available = os.cpu_count() or 1
    if cpus > available:
        raise UserError(
            f"spec.compute: the workers ask for {cpus:g} CPUs and this machine has {available}; "
            "lower workers or resourcesPerWorker.cpu"
        )
    if gpus > torch.cuda.device_count():
        raise UserError(
            f"spec.compute: the workers ask for {gpus:g} GPUs and this machine has {torch.cuda.device_count()}; "
            "lower workers or resourcesPerWorker.gpu"
        )


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put the process's handlers back afterwards: Ray aborts the driver at SIGTERM, before anything is saved."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# --- between the workers ----------------------------------------------------------------------------------


def process_group() -> TorchConfig:
    """How Ray Train connects the workers' processes with each other."""
    from ray.train import BackendConfig
    from ray.train.torch import TorchConfig

    backend = TorchConfig().backend_cls

    class NodeNetworkBackend(backend):  # type: ignore[misc, valid-type]
        def on_start(self, worker_group: object, backend_config: BackendConfig) -> None:
            worker_group.execute(use_network_of_node)  # type: ignore[attr-defined]
            super().on_start(worker_group, backend_config)

    class NodeNetwork(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return NodeNetworkBackend

    return NodeNetwork(timeout_s=_PATIENCE_SECONDS)


def use_network_of_node() -> None:
    """Let gloo listen where the other nodes find this one.

    By itself it listens on the address of the host's name, which on many hosts is one of the loopback device.
    """
    import ray

    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(_GLOO_INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an address."""
    for interface, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return interface
    return None
