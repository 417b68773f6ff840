"""The network of the node tier: a switch in a network namespace of its own, one cable to this machine, one per node.

Nothing of it lies in the machine's own namespace but one end of one cable, so the machine's firewall has no say and
a killed test leaves nothing. There is no way out: pods reach each other, services, the API server and this machine.

All addresses come from 198.18.0.0/15, which RFC 2544 sets aside for test benches, so they cannot be anybody's own.
A quarter of it is a slot: as many clusters can be up at once.
"""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from rig.cache import cache_directory
from rig.errors import RigError
from rig.processes import Process, wait_until

MAX_NODES = 8
SLOTS_OF_TESTS = (0, 1, 2)
SLOT_OF_A_PERSON = 3

_TEST_BENCH = ipaddress.IPv4Network("198.18.0.0/15")
_SECONDS_FOR_A_SLOT = 1800


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Who has which address in one slot."""

    slot: int

    @property
    def everything(self) -> str:
        """The range of the slot."""
        return str(self._range)

    @property
    def switch(self) -> str:
        """The control plane and DNS."""
        return str(self._range[1])

    @property
    def machine(self) -> str:
        """This machine's end of its cable."""
        return str(self._range[254])

    @property
    def pods(self) -> str:
        """The range of all pods."""
        return str(self._part(prefix=19, number=1))

    @property
    def services(self) -> str:
        """The range of Services."""
        return str(self._part(prefix=18, number=1))

    @property
    def first_service(self) -> str:
        """The API server's own Service."""
        return str(self._part(prefix=18, number=1)[1])

    @property
    def cable(self) -> str:
        """The name of the cable's end on this machine."""
        return f"ireko{self.slot}"

    def node(self, index: int) -> str:
        """The address of a node."""
        return str(self._range[10 + index])

    def pods_of(self, index: int) -> str:
        """The range of one node's pods."""
        return str(list(self._part(prefix=19, number=1).subnets(new_prefix=24))[index])

    @property
    def _range(self) -> ipaddress.IPv4Network:
        return list(_TEST_BENCH.subnets(new_prefix=17))[self.slot]

    def _part(self, *, prefix: int, number: int) -> ipaddress.IPv4Network:
        return list(self._range.subnets(new_prefix=prefix))[number]


@contextmanager
def a_free_slot(slots: Sequence[int]) -> Iterator[Addresses]:
    """The first of `slots` that no other cluster has, for as long as the block lasts; waits where all are taken."""
    locks = {slot: FileLock(_lock_of(slot)) for slot in slots}
    taken: list[int] = []

    def found() -> bool:
        for slot, lock in locks.items():
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                taken.append(slot)
                return True
        return False

    wait_until(
        found,
        what=f"one of the clusters in the slots {list(slots)} to end",
        timeout=_SECONDS_FOR_A_SLOT,
        every=1,
    )
    try:
        yield Addresses(slot=taken[0])
    finally:
        locks[taken[0]].release()


def _lock_of(slot: int) -> Path:
    cache_directory().mkdir(parents=True, exist_ok=True)
    return cache_directory() / f"slot-{slot}.lock"


class Switch:
    """The namespace that holds the bridge, with the cable to this machine plugged in."""

    def __init__(self, *, addresses: Addresses, log: Path) -> None:
        _remove_remains(addresses)
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
        ends = ["type", "veth", "peer", "name", "eth0", "netns", str(node.pid)]
        self.unplug(index)
        ip("link", "add", f"n{index}", *ends, at=self.prefix)
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

    def unplug(self, index: int) -> None:
        """Pull the cable of a node, if it has one."""
        shown = subprocess.run(
            [*self.prefix, "ip", "link", "show", f"n{index}"], capture_output=True, check=False
        )
        if shown.returncode == 0:
            ip("link", "delete", f"n{index}", at=self.prefix)

    def stop(self) -> None:
        """Pull this machine's cable and let the namespace go, with the bridge and every other cable in it."""
        # The kernel keeps a namespace until the last connection in it has timed out, and its interfaces as long.
        if Path(f"/sys/class/net/{self.addresses.cable}").exists():
            ip("link", "delete", self.addresses.cable)
        self._holder.kill()

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
        timeout=120,
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


def _remove_remains(addresses: Addresses) -> None:
    """Remove the cable of a cluster that was killed in this slot; raises RigError where somebody else is there."""
    if Path(f"/sys/class/net/{addresses.cable}").exists():
        ip("link", "delete", addresses.cable)
    command = ["ip", "-brief", "address", "show", "to", addresses.everything]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if there:
        raise RigError(
            f"addresses of {addresses.everything}, which RFC 2544 sets aside for tests, are in use on this machine:"
            f" {there.splitlines()[0]}"
        )
