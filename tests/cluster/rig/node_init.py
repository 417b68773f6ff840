"""What runs as the first process of a node, inside its namespaces: `python node_init.py PLAN.json`.

It hides the few places of this machine that a container runtime and a kubelet write to, starts them, and collects
what is orphaned here. When it ends, however it ends, the kernel ends every process of the node and unmounts
everything that was mounted. It needs nothing but the standard library, and decides nothing: the plan says all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SECONDS_FOR_CONTAINERD = 180
_LINES_OF_A_LOG = 8


def main() -> None:
    """Bring the node up as the plan says, then wait until one of its programs ends."""
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    isolate(plan)
    Path(plan["cable"]).read_bytes()  # a pipe: its other end opens when the network is there
    containerd = start("containerd", plan["containerd"], Path(plan["log"]))
    ask_until_answered(plan["ask"], containerd)
    for image in plan["images"]:
        subprocess.run([*plan["import"], image], check=True, stdout=subprocess.DEVNULL)
    started = {
        containerd.pid: "containerd",
        start("kubelet", plan["kubelet"], Path(plan["log"])).pid: "kubelet",
        start("kube-proxy", plan["kube-proxy"], Path(plan["log"])).pid: "kube-proxy",
    }
    while True:
        pid, status = os.wait()
        if pid in started:
            log = Path(plan["log"], f"{started[pid]}.log").read_text(encoding="utf-8", errors="replace")
            ends = "\n".join(log.splitlines()[-_LINES_OF_A_LOG:])
            sys.exit(f"{started[pid]} ended with {os.waitstatus_to_exitcode(status)}; its log ends:\n{ends}")


def isolate(plan: dict[str, Any]) -> None:
    """Give the node a name and places of its own for what has fixed places."""
    subprocess.run(["hostname", plan["name"]], check=True)
    # Private first: a mount made here must never reach the machine. Then shared, as kubelets expect it.
    mount("--make-rprivate", "/")
    mount("--make-rshared", "/")
    for place in plan["hidden"]:
        mount("-t", "tmpfs", "-o", "mode=755", "node", place)
    for place in plan["folders"]:
        Path(place).mkdir(parents=True, exist_ok=True)
    for place, kept in plan["kept"].items():
        mount("--bind", kept, place)
    # A kubelet sets these for the whole machine. Here it finds them as it wants them.
    for name, value in plan["settings"].items():
        pretended = Path(plan["state"], name.replace("/", "."))
        pretended.write_text(f"{value}\n", encoding="utf-8")
        mount("--bind", str(pretended), f"/proc/sys/{name}")


def mount(*arguments: str) -> None:
    """Run mount."""
    subprocess.run(["mount", *arguments], check=True)


def start(name: str, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start one of the node's programs with a log of its own."""
    with (log / f"{name}.log").open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def ask_until_answered(question: Sequence[str], server: subprocess.Popen[bytes]) -> None:
    """Repeat a command until it succeeds, as long as `server` runs."""
    deadline = time.monotonic() + _SECONDS_FOR_CONTAINERD
    while subprocess.run(question, capture_output=True, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"`{' '.join(question)}` was not answered; see the logs of the node")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
