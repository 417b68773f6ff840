"""The network of the node tier: a switch in a network namespace of its own, one cable to this machine, one per node.

Nothing of it lies in the machine's own namespace but one end of one cable, so the machine's firewall has no say and
a killed test leaves nothing. There is no way out: pods reach each other, services, the API server and this machine.

All addresses come from 198.18.0.0/15, which RFC 2544 sets aside for test benches, so they cannot be anybody's own.
Half of it is one `slot`: tests and a person's cluster can be up at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.errors import RigError
from rig.processes import Process, wait_until

MAX_NODES = 8


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Who has which address in one slot."""

    slot: int

    @property
    def _base(self) -> str:
        return f"198.{18 + self.slot}"

    @property
    def everything(self) -> str:
        """The range of the slot."""
        return f"{self._base}.0.0/16"

    @property
    def switch(self) -> str:
        """The control plane and DNS."""
        return f"{self._base}.0.1"

    @property
    def machine(self) -> str:
        """This machine's end of its cable."""
        return f"{self._base}.0.254"

    @property
    def pods(self) -> str:
        """The range of all pods."""
        return f"{self._base}.64.0/18"

    @property
    def services(self) -> str:
        """The range of Services."""
        return f"{self._base}.128.0/17"

    @property
    def first_service(self) -> str:
        """The API server's own Service."""
        return f"{self._base}.128.1"

    @property
    def cable(self) -> str:
        """The name of the cable's end on this machine."""
        return f"ireko{self.slot}"

    def node(self, index: int) -> str:
        """The address of a node."""
        return f"{self._base}.0.{10 + index}"

    def pods_of(self, index: int) -> str:
        """The range of one node's pods."""
        return f"{self._base}.{64 + index}.0/24"


class Switch:
    """The namespace that holds the bridge, with the cable to this machine plugged in."""

    def __init__(self, *, addresses: Addresses, log: Path) -> None:
        _refuse_taken(addresses)
        self.addresses = addresses
        self._holder = Process(
            name="switch", command=["unshare", "--net", "--", "sleep", "infinity"], log=log / "switch.log"
        )
        try:
            wait_until_apart(self._holder, "net")
            self._build()
        except BaseException:
            self.stop()
            raise

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command stands behind to run beside the bridge."""
        return within(self._holder.pid)

    def plug_in(self, node: Process, *, index: int) -> None:
        """Give the network namespace of `node` its cable, address and routes."""
        plan, inside = self.addresses, within(node.pid)
        ip(
            "link",
            "add",
            f"n{index}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(node.pid),
            at=self.prefix,
        )
        ip("link", "set", f"n{index}", "master", "switch", "up", at=self.prefix)
        ip("link", "set", "lo", "up", at=inside)
        ip("address", "add", f"{plan.node(index)}/24", "dev", "eth0", at=inside)
        ip("link", "set", "eth0", "up", at=inside)
        # Nothing but kube-proxy leads from here to a Service: what it does not translate finds nobody.
        ip("route", "add", plan.services, "dev", "eth0", at=inside)
        for other in range(MAX_NODES):
            if other != index:
                ip("route", "add", plan.pods_of(other), "via", plan.node(other), at=inside)
        allow_forwarding(inside)

    def stop(self) -> None:
        """Let the namespace go: the bridge and every cable, this machine's end included, go with it."""
        self._holder.kill()
        wait_until(
            lambda: not Path(f"/sys/class/net/{self.addresses.cable}").exists(),
            what=f"the network interface {self.addresses.cable} to go",
            timeout=30,
        )

    def _build(self) -> None:
        plan, inside = self.addresses, self.prefix
        ip("link", "set", "lo", "up", at=inside)
        ip("link", "add", "switch", "type", "bridge", at=inside)
        ip("address", "add", f"{plan.switch}/24", "dev", "switch", at=inside)
        ip("link", "set", "switch", "up", at=inside)
        ip(
            "link",
            "add",
            plan.cable,
            "type",
            "veth",
            "peer",
            "name",
            "machine",
            "netns",
            str(self._holder.pid),
        )
        ip("link", "set", "machine", "master", "switch", "up", at=inside)
        for index in range(MAX_NODES):
            ip("route", "add", plan.pods_of(index), "via", plan.node(index), at=inside)
        allow_forwarding(inside)
        ip("address", "add", f"{plan.machine}/24", "dev", plan.cable)
        ip("link", "set", plan.cable, "up")
        ip("route", "add", plan.pods, "via", plan.switch)


def within(pid: int) -> tuple[str, ...]:
    """What a command stands behind to run in the network namespace of process `pid`."""
    return ("nsenter", f"--net=/proc/{pid}/ns/net", "--")


def wait_until_apart(process: Process, kind: str) -> None:
    """Wait until `process` has left our namespace of `kind` for its own."""
    ours, theirs = Path(f"/proc/self/ns/{kind}"), Path(f"/proc/{process.pid}/ns/{kind}")
    wait_until(
        lambda: theirs.exists() and theirs.readlink() != ours.readlink(),
        what=f"the {kind} namespace of {process.name}",
        timeout=30,
        watched=[process],
    )


def ip(*arguments: str, at: Sequence[str] = ()) -> None:
    """Run iproute2, behind the prefix `at`; raises RigError with what it says."""
    done = subprocess.run([*at, "ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RigError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def allow_forwarding(at: Sequence[str]) -> None:
    """Let the namespace behind the prefix `at` pass on what is not meant for itself."""
    command = [*at, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RigError(f"net.ipv4.ip_forward cannot be set: {done.stderr.strip()}")


def _refuse_taken(addresses: Addresses) -> None:
    command = ["ip", "-brief", "address", "show", "to", addresses.everything]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if there:
        raise RigError(
            f"addresses of {addresses.everything} are in use: {there.splitlines()[0]}. Another cluster of this"
            " rig is up (end it with `make cluster-down`, or wait for its tests), or a network of somebody else"
        )
