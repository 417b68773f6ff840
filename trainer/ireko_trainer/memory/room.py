"""How much memory there is: what the machine has left, what the container may use, what is free on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ireko_trainer.memory.terms import size

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_NO_LIMIT = 2**60
"""The first version of cgroups writes a number as large as that where there is none."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes that a process can still get, and where that number comes from."""

    bytes: int
    what: str


def host_room(*, cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> Room:
    """What is left on this machine or, where that is less, of the limit of the container."""
    available = int(psutil.virtual_memory().available)
    rooms = [Room(bytes=available, what=f"{size(available)} are available on this machine")]
    for limit, used in _limits(cgroups, own):
        left = max(0, limit - used)
        rooms.append(
            Room(bytes=left, what=f"{size(left)} are left of the {size(limit)} that the container may use")
        )
    return min(rooms, key=lambda room: room.bytes)


def device_room(device: torch.device) -> Room:
    """What is free on a GPU, with what this process has taken and does not use."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    name = torch.cuda.get_device_name(device)
    return Room(
        bytes=free + unused, what=f"{size(free + unused)} are free of the {size(total)} of the {name}"
    )


def own_bytes() -> int:
    """What this process has for itself: what another one with the same libraries takes before it does anything."""
    return int(psutil.Process().memory_full_info().uss)


def _limits(cgroups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of every cgroup around this process that has a limit; pages of files are not in use."""
    if not own.is_file():
        return
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file", "active_file")
            root = cgroups
        elif controllers == "memory":
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
                "total_active_file",
            )
            root = cgroups / "memory"
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            directory = root.joinpath(*parts[:depth])
            limit = _number(directory / names[0])
            if limit is not None and limit < _NO_LIMIT:
                yield limit, (_number(directory / names[1]) or 0) - _file_pages(directory, names[2:])


def _number(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


def _file_pages(directory: Path, names: tuple[str, ...]) -> int:
    file = directory / "memory.stat"
    if not file.is_file():
        return 0
    counts = dict(line.split() for line in file.read_text().splitlines())
    return sum(int(counts.get(name, 0)) for name in names)
