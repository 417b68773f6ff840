"""What the node tier needs of a machine, and how it comes by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rig.binaries import say
from rig.errors import UnavailableError

_PACKAGES: Mapping[str, str] = {
    "containerd": "containerd",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "iptables": "iptables",
    "nft": "nftables",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "/usr/lib/cni/portmap": "containernetworking-plugins",
}
"""The program that is needed and the package of Debian and Ubuntu that has it."""


def require_node_tier() -> None:
    """Make sure that nodes can run here; as root on Debian or Ubuntu, what is missing is installed.

    Raises UnavailableError with one sentence that says what is missing and what would make it run.
    """
    if sys.platform != "linux":
        raise UnavailableError(
            f"nodes need Linux and this is {sys.platform}: run the tests in a Linux machine"
        )
    if os.geteuid() != 0:
        raise UnavailableError(
            "nodes need root, for their namespaces: run the tests as root, e.g. `sudo make test`"
        )
    missing = _missing_packages()
    if missing:
        _install(missing)
    _require_namespaces()


def _missing_packages() -> list[str]:
    return sorted({package for program, package in _PACKAGES.items() if shutil.which(program) is None})


def _install(packages: list[str]) -> None:
    wanted = " ".join(packages)
    remedy = f"install {wanted} (on Debian or Ubuntu: apt-get install {wanted})"
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"nodes need programs that are not here: {remedy}")
    say(f"Installing {wanted} with apt-get, which the nodes of the test cluster need")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise UnavailableError(f"`{' '.join(command)}` failed ({_last_line(done.stderr)}): {remedy}")
    still = _missing_packages()
    if still:
        raise UnavailableError(
            f"{', '.join(still)} was installed, but its programs are not where they should be"
        )


def _require_namespaces() -> None:
    """Root inside of a container often may not do what root of a machine may."""
    command = [
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--uts",
        "--ipc",
        "--fork",
        "--mount-proc",
        "mount",
        "-t",
        "tmpfs",
        "probe",
        "/mnt",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnavailableError(
            f"nodes need namespaces and mounts of their own, and this root may not make them"
            f" ({_last_line(done.stderr)}): run the tests on a machine, or in a privileged container"
        )
    if not Path("/sys/fs/cgroup").is_dir() or not os.access("/sys/fs/cgroup", os.W_OK):
        raise UnavailableError(
            "nodes need writable control groups in /sys/fs/cgroup: mount them, or run on a machine"
        )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
