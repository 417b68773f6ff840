"""A cluster that was taken down has left nothing on the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rig import cgroups
from rig.cluster import running_cluster
from rig.fixtures import skipping
from rig.images import HOST

SLOT = 2


def lines(*command: str) -> set[str]:
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def traces(directory: Path) -> dict[str, set[str]]:
    """Everything on this machine that a cluster could leave behind."""
    return {
        "processes": {
            path.read_bytes().replace(b"\0", b" ").decode()
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if path.exists() and str(directory).encode() in path.read_bytes()
        },
        "mounts": set(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()),
        "links": {path.name for path in Path("/sys/class/net").iterdir()},
        "routes": lines("ip", "route", "show", "table", "all"),
        "control groups": {str(path) for path in cgroups.remaining(f"ireko{SLOT}-")},
        "firewall": lines("nft", "list", "ruleset"),
        "fixed places": {
            str(path)
            for path in map(Path, ("/run/containerd", "/run/netns", "/var/lib/cni", "/var/log/containers"))
            if path.exists()
        },
        "settings": {
            f"{name}={Path('/proc/sys', name).read_text(encoding='utf-8')}"
            for name in ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
        },
    }


def test_nothing_is_left_of_a_cluster_that_ran_pods(tmp_path: Path) -> None:
    before = traces(tmp_path)
    with skipping("node tier"), running_cluster(tmp_path, slots=[SLOT]) as cluster:
        cluster.kubectl("run", "busy", f"--image={HOST}", "--image-pull-policy=Never", "--", "sleep", "600")
        cluster.kubectl("wait", "pod/busy", "--for=condition=Ready", "--timeout=300s")
        during = traces(tmp_path)
    assert [
        kind for kind in ("processes", "links", "control groups", "routes") if before[kind] == during[kind]
    ] == []
    assert traces(tmp_path) == before
