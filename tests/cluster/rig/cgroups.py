"""A control group per node, in whichever of the two ways this machine keeps them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from rig.errors import RigError

_ROOT = Path("/sys/fs/cgroup")
_SHARES_OF_A_CORE = 1024
_CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")


def make(name: str) -> None:
    """Make the group `name` in every hierarchy, ready to hold pods."""
    if (_ROOT / "cgroup.controllers").exists():
        for controller in _CONTROLLERS:
            if controller in (_ROOT / "cgroup.controllers").read_text(encoding="utf-8").split():
                (_ROOT / "cgroup.subtree_control").write_text(f"+{controller}", encoding="utf-8")
        (_ROOT / name).mkdir(exist_ok=True)
        return
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir(exist_ok=True)
        if (hierarchy / name / "cpu.shares").exists():
            # Otherwise all pods of the node together weigh as much as one process of the machine.
            shares = _SHARES_OF_A_CORE * (os.cpu_count() or 1)
            (hierarchy / name / "cpu.shares").write_text(str(shares), encoding="utf-8")
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / file).exists():
                (hierarchy / name / file).write_text(
                    (hierarchy / file).read_text(encoding="utf-8"), encoding="utf-8"
                )


def remove(name: str) -> None:
    """Remove the group `name` with all below it; raises RigError where a process will not leave."""
    for hierarchy in _hierarchies():
        deadline = time.monotonic() + 20
        while not _removed(hierarchy / name):
            if time.monotonic() > deadline:
                raise RigError(
                    f"processes stay in the control group {hierarchy / name}: {_members(hierarchy / name)}"
                )
            time.sleep(0.05)


def remaining(prefix: str) -> list[Path]:
    """The groups whose names begin with `prefix`."""
    return [group for hierarchy in _hierarchies() for group in hierarchy.glob(f"{prefix}*")]


def _hierarchies() -> list[Path]:
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT]
    return sorted(path for path in _ROOT.iterdir() if path.is_dir() and not path.is_symlink())


def _removed(group: Path) -> bool:
    """Remove the groups that are empty, and kill what still lives in the others."""
    for folder in _folders(group):
        with contextlib.suppress(OSError):
            folder.rmdir()
    for pid in _members(group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not group.exists()


def _folders(group: Path) -> Iterator[Path]:
    """`group` and all below it, the lowest first."""
    for folder, _, _ in os.walk(group, topdown=False):
        yield Path(folder)


def _members(group: Path) -> list[int]:
    members: list[int] = []
    for folder in _folders(group):
        with contextlib.suppress(OSError):
            members += map(int, (folder / "cgroup.procs").read_text(encoding="utf-8").split())
    return members
