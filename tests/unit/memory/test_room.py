"""What there is: the machine, and the containers around the process."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ireko_trainer.memory import host_room, own_bytes

MIB = 2**20


def write(directory: Path, **files: str | int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def own(tmp_path: Path, line: str) -> Path:
    file = tmp_path / "own"
    file.write_text(line + "\n")
    return file


def test_a_machine_without_containers_has_what_is_available(tmp_path: Path, cgroups: Path) -> None:
    room = host_room(cgroups=cgroups, own=tmp_path / "nothing")
    assert 0 < room.bytes <= psutil.virtual_memory().total
    assert "available on this machine" in room.what


def test_a_container_has_its_limit_without_what_is_in_use(tmp_path: Path, cgroups: Path) -> None:
    """Pages of files can be dropped: they are not in use."""
    stat = f"anon {40 * MIB}\ninactive_file {50 * MIB}\nactive_file {10 * MIB}"
    write(cgroups, memory__max=128 * MIB, memory__current=100 * MIB, memory__stat=stat)
    room = host_room(cgroups=cgroups, own=own(tmp_path, "0::/"))
    assert room.bytes == (128 - 40) * MIB
    assert room.what == "88 MiB are left of the 128 MiB that the container may use"


def test_the_tightest_of_the_groups_around_a_process_counts(tmp_path: Path, cgroups: Path) -> None:
    write(cgroups / "user" / "job", memory__max="max", memory__current=MIB)
    write(cgroups / "user", memory__max=64 * MIB, memory__current=16 * MIB)
    room = host_room(cgroups=cgroups, own=own(tmp_path, "0::/user/job"))
    assert room.bytes == 48 * MIB


def test_a_path_of_the_host_is_not_found_inside_and_the_container_is_its_own_root(
    tmp_path: Path, cgroups: Path
) -> None:
    write(cgroups, memory__max=32 * MIB, memory__current=0)
    assert host_room(cgroups=cgroups, own=own(tmp_path, "0::/kubepods/pod1/a")).bytes == 32 * MIB


def test_the_first_version_of_cgroups_is_understood(tmp_path: Path, cgroups: Path) -> None:
    stat = f"total_inactive_file {4 * MIB}\ntotal_active_file 0"
    write(
        cgroups / "memory" / "docker",
        memory__limit_in_bytes=32 * MIB,
        memory__usage_in_bytes=20 * MIB,
        memory__stat=stat,
    )
    write(cgroups / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=2**40)
    room = host_room(cgroups=cgroups, own=own(tmp_path, "5:memory:/docker\n3:cpu:/docker"))
    assert room.bytes == 16 * MIB


def test_a_process_knows_what_it_has_for_itself() -> None:
    assert 0 < own_bytes() <= psutil.Process().memory_info().rss
