"""A Ray cluster of several nodes on this machine: a head that computes nothing, and workers that can be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_SECONDS = 300.0
"""For a machine that does other things as well."""
_START_TRIES = 4
_STARTED = b"Ray runtime started."
_RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(kw_only=True)
class RayNodes:
    """The processes of the cluster, by the name of the node; every node has a disk of its own."""

    directory: Path
    environment: Mapping[str, str]
    port: int
    dashboard_port: int
    session: Path
    _nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def start(cls, directory: Path, *, environment: Mapping[str, str], workers: list[str]) -> RayNodes:
        """A head, as KubeRay starts it for a run, and a worker with one CPU for each name."""
        nodes = cls(
            directory=directory,
            environment={
                **environment,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
                "RAY_DASHBOARD_STARTUP_TIMEOUT_S": f"{START_SECONDS:.0f}",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_JOB_STOP_WAIT_TIME_S": "100",
            },
            port=_free_port(),
            dashboard_port=_free_port(),
            # Ray's sockets lie in there, and their paths must be short.
            session=Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")),
        )
        try:
            nodes._start(
                "head",
                *("--head", "--num-cpus", "0", "--port", str(nodes.port), "--temp-dir", str(nodes.session)),
                *("--dashboard-port", str(nodes.dashboard_port), "--dashboard-host", "127.0.0.1"),
            )
            nodes._wait_for_dashboard()
            for name in workers:
                nodes.add(name)
        except BaseException:
            nodes.stop()
            raise
        return nodes

    @property
    def _submission_address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def add(self, name: str) -> None:
        """Start a worker node."""
        self._start(name, "--address", f"127.0.0.1:{self.port}", "--num-cpus", "1")

    def _start(self, name: str, *arguments: str) -> None:
        """Start a node and, as a kubelet would, start it again when Ray gives up starting on a busy machine."""
        disk = self.directory / name
        disk.mkdir()
        for _ in range(_START_TRIES):
            process = self._nodes[name] = subprocess.Popen(
                [
                    *(_RAY, "start", "--block", "--node-ip-address", "127.0.0.1", "--disable-usage-stats"),
                    *("--object-store-memory", "100000000", *arguments),
                ],
                env={**os.environ, **self.environment, "TMPDIR": str(disk)},
                stdout=(disk / "ray.log").open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            while process.poll() is None:
                if _STARTED in (disk / "ray.log").read_bytes():
                    return
                time.sleep(0.2)
            self.kill(name)
        raise AssertionError((disk / "ray.log").read_text())

    def _wait_for_dashboard(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                request = urllib.request.Request(
                    f"{self._submission_address}/api/version",
                    headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
                )
                urllib.request.urlopen(request, timeout=5).close()
                return
            assert self._nodes["head"].poll() is None, (self.directory / "head" / "ray.log").read_text()
            assert time.monotonic() < deadline, "the head did not answer"
            time.sleep(0.5)

    def kill(self, name: str) -> None:
        """Let a node vanish: none of its processes has a moment to say so."""
        process = self._nodes.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            family = [root, *root.children(recursive=True)]
            for each in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(family, timeout=10)
        process.wait()

    def submit(self, job: str, *command: str) -> subprocess.Popen[str]:
        """`ray job submit`, which follows the job to its end."""
        return self._ray("submit", "--submission-id", job, "--", *command)

    def stop_job(self, job: str) -> None:
        """`ray job stop`, as KubeRay does when a RayJob is deleted."""
        stopping = self._ray("stop", job)
        output, _ = stopping.communicate(timeout=START_SECONDS)
        assert stopping.returncode == 0, output

    def logs(self, job: str) -> str:
        """What the driver wrote."""
        output, _ = self._ray("logs", job).communicate(timeout=START_SECONDS)
        return output

    def _ray(self, *arguments: str) -> subprocess.Popen[str]:
        verb, *rest = arguments
        return subprocess.Popen(
            [_RAY, "job", verb, "--address", self._submission_address, *rest],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self) -> None:
        """Kill every node and remove what the cluster left on the disk."""
        for name in list(self._nodes):
            self.kill(name)
        # Drivers and workers have sessions of their own, and all of them have the cluster's directory open.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.session) in word for word in process.cmdline()):
                    process.kill()
        shutil.rmtree(self.session, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
